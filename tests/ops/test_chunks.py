"""Scores, quotas and picks of chunks equal their plain loops, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast, inputs, pictures, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.chunks import best_of_chunks, chunk_grid, chunk_quotas, holistic_scores
from vtprune.ops.reference import chunks as reference

sizes = pytest.mark.parametrize(("tokens", "chunks"), [(1, 1), (2, 1), (2, 2), (23, 1), (23, 5), (23, 23), (24, 8)])


def shares_of(kind: str, dtype: torch.dtype, batch: int, tokens: int) -> torch.Tensor:
    """Scores of 0 and above; a few tower over the rest, so that chunks overflow."""
    return (tokens_of(kind, batch, tokens, 1)[:, :, 0].abs() ** 8).to(dtype)


@sizes
def test_chunk_grid(tokens: int, chunks: int) -> None:
    index, real = chunk_grid(tokens, chunks)
    assert [row[here].tolist() for row, here in zip(index, real, strict=True)] == reference.chunk_lists(tokens, chunks)


@inputs
@sizes
def test_holistic_scores(kind: str, dtype: torch.dtype, tokens: int, chunks: int) -> None:
    features, attention = tokens_of(kind, 2, tokens, 16).to(dtype), torch.rand(2, tokens).to(dtype)
    fast = holistic_scores(features, attention, chunks, weight=0.5)
    assert fast.dtype == torch.float32
    for picture in range(2):
        slow = reference.holistic_scores(features[picture], attention[picture].tolist(), chunks, weight=0.5)
        torch.testing.assert_close(fast[picture], torch.tensor(slow), rtol=1e-5, atol=1e-5)


@inputs
@sizes
@pytest.mark.parametrize("reallocate", [True, False])
def test_chunk_quotas(kind: str, dtype: torch.dtype, tokens: int, chunks: int, reallocate: bool) -> None:
    scores = shares_of(kind, dtype, 3, tokens)
    for budget in {0, 1, tokens // 2, tokens - 1, tokens}:
        for sharpness in (1.0, 2.0):
            fast = chunk_quotas(scores, chunks, budget, sharpness=sharpness, reallocate=reallocate)
            assert fast.tolist() == [
                reference.chunk_quotas(row, chunks, budget, sharpness=sharpness, reallocate=reallocate)
                for row in scores.tolist()
            ]


@inputs
@sizes
def test_best_of_chunks(kind: str, dtype: torch.dtype, tokens: int, chunks: int) -> None:
    scores = tokens_of(kind, 3, tokens, 1)[:, :, 0].to(dtype)
    for budget in {1, tokens // 2 or 1, tokens}:
        quotas = chunk_quotas(shares_of(kind, dtype, 3, tokens), chunks, budget, reallocate=False)
        fast = best_of_chunks(scores, quotas, budget)
        rows = zip(scores.tolist(), quotas.tolist(), strict=True)
        assert fast.tolist() == [reference.best_of_chunks(row, quota, budget) for row, quota in rows]


@settings(max_examples=60)
@given(pictures(), st.data())
def test_every_budget_is_met_exactly(states: torch.Tensor, data: st.DataObject) -> None:
    tokens = states.shape[1]
    chunks, budget = data.draw(st.integers(1, min(tokens, 40))), data.draw(st.integers(1, tokens))
    scores = states[:, :, 0].abs() ** data.draw(st.sampled_from([1, 8, 16]))
    scores = scores.nan_to_num(posinf=1e4)
    room = chunk_grid(tokens, chunks)[1].sum(1)
    quotas = chunk_quotas(scores, chunks, budget)
    assert quotas.sum(1).tolist() == [budget] * len(states)
    assert bool((quotas >= 0).all())
    assert bool((quotas <= room).all())
    official = chunk_quotas(scores, chunks, budget, reallocate=False)
    fits = (official <= room).all(1) & (official.sum(1) == budget)
    assert torch.equal(quotas[fits], official[fits])
    assert bool((quotas >= torch.minimum(official, room)).all())
    picks = best_of_chunks(scores, quotas, budget)
    assert all(len(set(row)) == budget and min(row) >= 0 for row in picks.tolist())
    assert chunk_quotas(scores[-1:], chunks, budget).tolist() == quotas[-1:].tolist()


@settings(max_examples=25)
@given(pictures(), st.data())
def test_scores_are_finite_and_not_below_the_attention(states: torch.Tensor, data: st.DataObject) -> None:
    attention = torch.rand(states.shape[:2])
    chunks = data.draw(st.integers(1, min(states.shape[1], 40)))
    scores = holistic_scores(states, attention, chunks)
    assert bool(scores.isfinite().all())
    assert bool((scores >= 1000 * attention - 1e-3).all())


def test_overflow_goes_to_the_others_by_weight() -> None:
    scores = torch.tensor([[90.0] * 4 + [6.0] * 4 + [3.0] * 4 + [0.0] * 4])
    assert chunk_quotas(scores, 4, 10, reallocate=False).tolist() == [[10, 0, 0, 0]]
    assert chunk_quotas(scores, 4, 10).tolist() == [[4, 4, 2, 0]]
    assert chunk_quotas(scores, 4, 13).tolist() == [[4, 4, 4, 1]]


def test_autocast_does_not_lower_the_precision() -> None:
    features, attention = torch.randn(2, 63, 16), torch.rand(2, 63)
    assert_unchanged_by_autocast(lambda: [holistic_scores(features, attention, 4)])


@pytest.mark.parametrize("chunks", [0, 5])
def test_chunks_out_of_range_are_refused(chunks: int) -> None:
    for call in (
        lambda: chunk_grid(4, chunks),
        lambda: holistic_scores(torch.ones(1, 4, 2), torch.ones(1, 4), chunks),
        lambda: chunk_quotas(torch.ones(1, 4), chunks, 2),
    ):
        with pytest.raises(ValueError, match=f"from 1 to 4 .*got {chunks}"):
            call()


def test_budgets_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 4 .*got 5"):
        chunk_quotas(torch.ones(1, 4), 2, 5)
    with pytest.raises(ValueError, match=r"from 1 to 4 .*got 5"):
        best_of_chunks(torch.ones(1, 4), torch.ones(1, 2, dtype=torch.int64), 5)
