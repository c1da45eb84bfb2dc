"""Tokens unlike pivots: against the plain loop, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import DTYPES, KINDS, assert_unchanged_by_autocast, inputs, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.pivots import unlike_pivots
from vtprune.ops.reference import pivots as reference

few = settings(max_examples=40)


@inputs
@pytest.mark.parametrize(("tokens", "count"), [(1, 0), (2, 1), (63, 0), (63, 1), (63, 7), (63, 29), (63, 61)])
def test_picks_agree_with_the_loop(kind: str, dtype: torch.dtype, tokens: int, count: int) -> None:
    visual, pivots = tokens_of(kind, 3, tokens, 16).to(dtype), tokens_of(kind, 3, 5, 16).to(dtype)
    live = torch.tensor([[True] * 5, [False, True, False, True, True], [True, False, False, False, False]])
    gone = [{0} if tokens == 2 else set(), {1} if tokens == 2 else {5} & {*range(tokens)}, {*range(tokens - count)}]
    taken = torch.tensor([[token in its for token in range(tokens)] for its in gone])
    fast = unlike_pivots(visual, pivots.masked_fill(~live[..., None], torch.nan), count, live=live, taken=taken)
    for picture in range(3):
        slow = reference.unlike_pivots(visual[picture], pivots[picture, live[picture]], count, gone[picture])
        assert fast[picture].nonzero().flatten().tolist() == slow


def test_order_of_pivots_matters() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1], [0.1, -1.0], [-1.0, -1.0]]])
    live, taken = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[True, True, False, False, False]])
    forward = unlike_pivots(tokens, tokens[:, :2], 1, live=live, taken=taken)
    backward = unlike_pivots(tokens, tokens[:, [1, 0]], 1, live=live, taken=taken)
    assert forward.tolist() == [[False, False, True, False, False]]
    assert backward.tolist() == [[False, False, False, True, False]]


def test_autocast_changes_nothing() -> None:
    tokens, live, taken = (
        torch.randn(2, 900, 64),
        torch.ones(2, 8, dtype=torch.bool),
        torch.zeros(2, 900, dtype=torch.bool),
    )
    assert_unchanged_by_autocast(lambda: [unlike_pivots(tokens, tokens[:, :8], 400, live=live, taken=taken)])


def test_more_than_there_are_is_refused() -> None:
    live, taken = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"from 0 to 5 .*, got 6"):
        unlike_pivots(torch.randn(1, 5, 3), torch.randn(1, 1, 3), 6, live=live, taken=taken)


@few
@given(
    *(st.data(), st.integers(1, 700), st.integers(1, 4), st.integers(1, 9)),
    *(st.sampled_from((*KINDS, "strided")), st.sampled_from(DTYPES)),
)
def test_exactly_the_asked_number_is_picked(
    data: st.DataObject, tokens: int, batch: int, pivots: int, kind: str, dtype: torch.dtype
) -> None:
    free = data.draw(st.integers(0, tokens))
    count = data.draw(st.integers(0, free))
    live = torch.rand(batch, pivots) < 0.5
    live[:, data.draw(st.integers(0, pivots - 1))] = True
    taken = torch.rand(batch, tokens).argsort(dim=1) >= free
    visual, its = tokens_of(kind, batch, tokens, 4).to(dtype), tokens_of(kind, batch, pivots, 4).to(dtype)
    picked = unlike_pivots(visual, its, count, live=live, taken=taken)
    assert picked.sum(dim=1).tolist() == [count] * batch
    assert not bool((picked & taken).any())
    alone = unlike_pivots(visual[-1:], its[-1:], count, live=live[-1:], taken=taken[-1:])
    assert torch.equal(alone[0], picked[-1])
