"""Positions without gaps equal their plain loop, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.positions import closed_positions
from vtprune.ops.reference import positions as reference

Case = tuple[torch.Tensor, torch.Tensor]


@st.composite
def cases(draw: st.DrawFn, *, numbers: int | None = None) -> Case:
    """Positions with repeats, jumps and negative numbers in any order, and which tokens are left."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    axes = draw(st.integers(1, 4)) if numbers is None else numbers
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 60))
    positions = torch.randint(-5, draw(st.integers(-4, 80)), (axes, batch, length))
    return positions, torch.rand(batch, length) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))


@settings(max_examples=150)
@given(cases(), st.sampled_from([torch.int64, torch.int32, torch.float32]))
def test_equals_the_loop(case: Case, dtype: torch.dtype) -> None:
    positions, left = case
    closed = closed_positions(positions.to(dtype), left)
    assert closed.dtype == dtype
    for row in range(left.shape[0]):
        slow = torch.tensor(reference.closed_positions(positions[:, row].tolist(), left[row].tolist()))
        stays = left[row]
        assert torch.equal(closed[:, row, stays], slow[:, stays].to(dtype))


@settings(max_examples=80)
@given(cases())
def test_order_and_ties_stay_and_gaps_do_not_grow(case: Case) -> None:
    positions, left = case
    closed = closed_positions(positions, left)
    for row in range(left.shape[0]):
        old, new = (each[:, row, left[row]].flatten() for each in (positions, closed))
        assert torch.equal((old[:, None] - old[None]).sign(), (new[:, None] - new[None]).sign())
        assert ((new[:, None] - new[None]).abs() <= (old[:, None] - old[None]).abs()).all()
        assert (new <= old).all()


@settings(max_examples=40)
@given(cases())
def test_nothing_moves_when_all_are_left_or_all_is_closed(case: Case) -> None:
    positions, left = case
    assert torch.equal(closed_positions(positions, torch.ones_like(left)), positions)
    row = left[0]
    once = closed_positions(positions, left)[:, :1, row]
    assert torch.equal(closed_positions(once, torch.ones_like(row[row]).unsqueeze(0)), once)


@settings(max_examples=40)
@given(cases(numbers=1))
def test_one_number_a_token_counts_the_tokens_that_are_left(case: Case) -> None:
    _, left = case
    plain = torch.arange(left.shape[1]).expand(1, *left.shape)
    closed = closed_positions(plain, left)[0]
    assert torch.equal(closed[left], (left.cumsum(1) - 1)[left])


def test_a_row_of_a_picture_that_is_gone_moves_what_follows() -> None:
    """Two words, a picture of 2 x 3 tokens (time 2, rows 2 and 3, columns 2 to 4), and a word behind it at 5."""
    time = [0, 1, 2, 2, 2, 2, 2, 2, 5]
    rows = [0, 1, 2, 2, 2, 3, 3, 3, 5]
    columns = [0, 1, 2, 3, 4, 2, 3, 4, 5]
    left = [True, True, True, True, False, True, False, False, True]
    closed = closed_positions(torch.tensor([time, rows, columns]).unsqueeze(1), torch.tensor([left]))
    # 4 was the number of the last column alone, which is gone; 3 is still that of the second row.
    assert closed[:, 0, torch.tensor(left)].tolist() == [[0, 1, 2, 2, 2, 4], [0, 1, 2, 2, 3, 4], [0, 1, 2, 3, 2, 4]]


@pytest.mark.parametrize("length", [1, 2000])
def test_long_sequences(length: int) -> None:
    positions = torch.arange(length).expand(3, 1, length)
    assert torch.equal(closed_positions(positions, torch.ones(1, length, dtype=torch.bool)), positions)
