"""Programs that wait for each other see what the others wrote before."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from vtprune.kernels.grid import grid_barrier, programs_at_once, together

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit  # type: ignore[untyped-decorator]
def _pass_on(  # type: ignore[no-untyped-def]
    values, counters, turns, programs, BLOCK: tl.constexpr
):
    """At each turn a program takes what its right neighbour held and adds one; two halves of `values` take turns."""
    group, program = tl.program_id(0) // programs, tl.program_id(0) % programs
    values += group * 2 * programs * BLOCK
    lanes = tl.arange(0, BLOCK)
    right = (program + 1) % programs
    for turn in range(0, turns):
        here, there = values + turn % 2 * programs * BLOCK, values + (turn + 1) % 2 * programs * BLOCK
        # Threads read what others of their program wrote.
        taken = tl.load(here + right * BLOCK + (BLOCK - 1 - lanes), cache_modifier=".cg")
        tl.store(there + program * BLOCK + lanes, taken + 1)
        grid_barrier(counters + group, turn + 1, programs)


def assert_passed_on(programs: int, groups: int, turns: int) -> None:
    block = 256
    start = torch.randint(0, 1000, (groups, programs, block), device=DEVICE)
    values = torch.stack([start, torch.full_like(start, -1)], dim=1)
    counters = torch.zeros(groups, dtype=torch.int64, device=DEVICE)
    _pass_on[(groups * programs,)](values, counters, turns, programs, BLOCK=block, **together(values))
    expected = start.roll(-turns, dims=1) + turns
    assert torch.equal(values[:, turns % 2], expected.flip(2) if turns % 2 else expected)
    assert counters.tolist() == [turns * programs if programs > 1 else 0] * groups


@pytest.mark.parametrize("turns", [1, 2, 7])
def test_one_program_waits_for_itself_alone(turns: int) -> None:
    assert_passed_on(1, 3, turns)


def test_a_device_without_multiprocessors_runs_one_program_at_a_time() -> None:
    values = torch.zeros(1)
    assert programs_at_once(values) == 1
    assert together(values) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("turns", [1, 2, 301])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_all_programs_of_a_device_wait_for_each_other(share: float, turns: int) -> None:
    at_once = programs_at_once(torch.zeros(1, device=DEVICE))
    programs = max(2, int(share * at_once))
    for _ in range(20):
        assert_passed_on(programs, at_once // programs, turns)
