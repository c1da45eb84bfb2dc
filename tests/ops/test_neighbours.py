"""Neighbours on a grid: equal to the plain loop, and what holds for every token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.neighbours import grid_neighbours
from vtprune.ops.reference import neighbours as reference


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (2, 2), (7, 9), (24, 24)])
def test_grid_neighbours(height: int, width: int, wrap: bool) -> None:
    everything = torch.arange(height * width)
    fast = grid_neighbours(torch.stack([everything, everything.flip(0)]), height, width, wrap=wrap)
    assert fast[0].tolist() == reference.grid_neighbours(everything.tolist(), height, width, wrap=wrap)
    assert fast[1].tolist() == fast[0].tolist()[::-1]


def test_tokens_in_a_strided_tensor_and_none_at_all() -> None:
    tokens = torch.randint(0, 63, (5, 6))[:, ::2].T
    fast = grid_neighbours(tokens, 7, 9)
    assert fast.tolist() == [reference.grid_neighbours(row, 7, 9) for row in tokens.tolist()]
    assert grid_neighbours(tokens[:, :0], 7, 9).shape == (3, 0, 4)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_neighbours_lie_one_step_away(height: int, width: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, height * width - 1))
    around = grid_neighbours(torch.tensor([[token]]), height, width)[0, 0].tolist()
    row, column = divmod(token, width)
    distances = [abs(other // width - row) + abs(other % width - column) for other in around]
    exists = [column > 0, column < width - 1, row > 0, row < height - 1]
    assert distances == [int(there) for there in exists]
    for there, other in zip(exists, around, strict=True):
        assert (other != token) == there
    for other in set(around) - {token}:
        assert token in grid_neighbours(torch.tensor([[other]]), height, width)[0, 0].tolist()
