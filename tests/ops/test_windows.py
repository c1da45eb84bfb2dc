"""Picks over windows equal their plain loop, and what holds for every input."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from awkward import inputs, pictures, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.reference import windows as reference
from vtprune.ops.windows import spread_over_windows


@inputs
@pytest.mark.parametrize(("tokens", "keep"), [(1, 0), (1, 1), (2, 1), (63, 1), (63, 20), (63, 63)])
@pytest.mark.parametrize("count", [1, 5, 100])
def test_equals_the_loop(kind: str, dtype: torch.dtype, tokens: int, keep: int, count: int) -> None:
    scores = tokens_of(kind, 3, tokens, 1)[:, :, 0].to(dtype)
    windows = torch.randint(0, count, (tokens,))
    fast = spread_over_windows(scores, windows, keep)
    assert fast.tolist() == [reference.spread_over_windows(row, windows.tolist(), keep) for row in scores.tolist()]


@settings(max_examples=40)
@given(pictures(dim=1), st.data())
def test_windows_differ_by_one_until_they_run_out(states: torch.Tensor, data: st.DataObject) -> None:
    scores = states[:, :, 0]
    tokens = scores.shape[1]
    windows = torch.randint(0, data.draw(st.integers(1, 30)), (tokens,))
    keep = data.draw(st.integers(0, tokens))
    picks = spread_over_windows(scores, windows, keep)
    sizes = Counter(windows.tolist())
    for row in picks.tolist():
        assert len(set(row)) == keep
        given_by = Counter(windows[row].tolist()) if row else Counter()
        most = max(given_by.values(), default=0)
        assert all(given_by[window] >= min(sizes[window], most - 1) for window in sizes)
    assert spread_over_windows(scores[-1:], windows, keep).tolist() == picks[-1:].tolist()


def test_left_over_picks_go_to_the_highest_scores() -> None:
    scores = torch.tensor([[1.0, 2.0, 9.0, 8.0, 5.0, 6.0]])
    windows = torch.tensor([0, 0, 7, 7, 3, 3])
    assert spread_over_windows(scores, windows, 4).tolist() == [[2, 5, 1, 3]]


@pytest.mark.parametrize("keep", [-1, 4])
def test_refusals_name_the_value_and_the_range(keep: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 3 .*got {keep}"):
        spread_over_windows(torch.ones(1, 3), torch.zeros(3, dtype=torch.int64), keep)
