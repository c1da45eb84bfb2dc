"""All programs of one launch waiting for each other, for loops whose every turn needs what the others found.

A barrier only works among programs that run at the same time: a launcher starts no more of them than
`programs_at_once` says, and hands `together(tensor)` to the launch, by which the driver promises it or refuses. What
one program writes before a barrier others may read after it, with `cache_modifier=".cg"`: the cache of a multiprocessor
does not hear of what other ones write.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl


@triton.jit
def grid_barrier(counter, turn, programs):  # type: ignore[no-untyped-def]
    """Returns when `programs` programs have come here for the `turn`-th time.

    It also holds the threads of one program together, and is only that for a single program.

    Args:
        counter: Pointer to an int32 or int64 that these programs share, zero before the launch and nobody else's.
        turn: 1 at the first call, one more at each later one; the same for all programs.
        programs: How many share the counter.
    """
    # All threads have written before the first of them tells the other programs.
    tl.debug_barrier()
    if programs > 1:
        # Never set back, so that a program which is already at the next turn disturbs nobody.
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") + 1
        while arrived < turn * programs:
            arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()


def programs_at_once(tensor: torch.Tensor) -> int:
    """How many programs surely run at the same time on the tensor's device: one for each of its multiprocessors.

    Elsewhere than on CUDA it is 1: Triton's interpreter runs one program after the other.
    """
    return _multiprocessors(tensor.device) if tensor.is_cuda else 1


def together(tensor: torch.Tensor) -> dict[str, bool]:
    """Options of a launch whose programs wait for each other: it starts with room for all of them or not at all.

    Without it two such launches on different streams could each hold half of the device and wait for ever.
    """
    return {"launch_cooperative_grid": True} if tensor.is_cuda else {}


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
