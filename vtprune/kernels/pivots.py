"""Pivots that pick one after another, all of them in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vtprune.kernels.ranking import falling_ranks


@triton.jit  # type: ignore[untyped-decorator]
def _pick_kernel(  # type: ignore[no-untyped-def]
    cosine,
    live,
    taken,
    unlike,
    picked,
    tokens,
    pivots,
    count,
    PIVOTS: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    picture = tl.program_id(0).to(tl.int64)
    cosine += picture * pivots * tokens
    unlike += picture * tokens
    picked += picture * tokens
    taken += picture * tokens
    pivot = tl.arange(0, PIVOTS)
    lives = tl.load(live + picture * pivots + pivot, mask=pivot < pivots, other=0) != 0
    number = tl.maximum(tl.sum(lives.to(tl.int32), axis=0), 1)
    for first in range(0, tokens, COLUMNS):
        token = first + tl.arange(0, COLUMNS)
        tl.store(picked + token, tl.zeros((COLUMNS,), dtype=tl.int8), mask=token < tokens)
    tl.debug_barrier()
    place = 0
    for this in range(0, pivots):
        if tl.load(live + picture * pivots + this) != 0:
            share = count // number + (place < count % number).to(tl.int32)
            place += 1
            for first in range(0, tokens, COLUMNS):
                token = first + tl.arange(0, COLUMNS)
                inside = token < tokens
                value = -tl.load(cosine + this * tokens + token, mask=inside, other=0.0)
                # What is not a number comes after all numbers, and what is gone after that.
                value = tl.where(value == value, value, -4.0)
                gone = tl.load(taken + token, mask=inside, other=1) != 0
                gone = gone | (tl.load(picked + token, mask=inside, other=1) != 0)
                tl.store(unlike + token, tl.where(gone, -8.0, value), mask=inside)
            tl.debug_barrier()
            for first in range(0, tokens, PLACES):
                token = first + tl.arange(0, PLACES)
                rank = falling_ranks(unlike, token, tokens, COLUMNS)
                picks = (token < tokens) & (rank < share)
                tl.store(picked + token, tl.full((PLACES,), 1, dtype=tl.int8), mask=picks)
            tl.debug_barrier()


def pick_unlike(cosine: torch.Tensor, live: torch.Tensor, taken: torch.Tensor, count: int) -> torch.Tensor:
    """What `vtprune.ops.pivots.unlike_pivots` returns, from cosines.

    Args:
        cosine: Of each pivot with each token, `(batch, pivots, tokens)` float32 or float64.
        live: Pivots that pick, `(batch, pivots)`.
        taken: Tokens that may not be picked, `(batch, tokens)`.
        count: Tokens to pick, at most as many as are not taken.
    """
    cosine = cosine.contiguous()
    batch, pivots, tokens = cosine.shape
    unlike = torch.empty((batch, tokens), dtype=cosine.dtype, device=cosine.device)
    picked = torch.empty((batch, tokens), dtype=torch.bool, device=cosine.device)
    with torch.cuda.device_of(cosine):
        _pick_kernel[(batch,)](
            cosine,
            live.contiguous().view(torch.int8),
            taken.contiguous().view(torch.int8),
            unlike,
            picked.view(torch.int8),
            tokens,
            pivots,
            count,
            PIVOTS=triton.next_power_of_2(pivots),
            PLACES=64,
            COLUMNS=256,
            num_warps=16,
        )
    return picked
