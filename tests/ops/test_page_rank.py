"""PageRank over attention: against plain loops, and what holds for every input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from awkward import assert_unchanged_by_autocast
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops import page_rank as module
from vtprune.ops.page_rank import attention_page_rank, page_rank
from vtprune.ops.reference import page_rank as reference

few = settings(max_examples=30)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize(("steps", "temperature"), [(0, 1.0), (1, 0.1), (5, 0.1), (5, 2.0)])
def test_walk_agrees_with_the_loop(dtype: torch.dtype, tokens: int, steps: int, temperature: float) -> None:
    logits = torch.randn(2, 3, tokens, tokens).to(dtype)
    start = torch.rand(2, tokens, dtype=torch.float64).softmax(-1)
    fast = page_rank(logits, steps=steps, temperature=temperature)
    weighted = page_rank(logits, start, steps=steps, temperature=temperature)
    assert fast.dtype == torch.float64
    for picture in range(2):
        slow = reference.page_rank(logits[picture], steps=steps, temperature=temperature)
        torch.testing.assert_close(fast[picture].tolist(), slow, rtol=1e-9, atol=0)
        slow = reference.page_rank(logits[picture], start[picture].tolist(), steps=steps, temperature=temperature)
        torch.testing.assert_close(weighted[picture].tolist(), slow, rtol=1e-9, atol=0)


@pytest.mark.parametrize("elements", [1, 2 * 9 * 9 * 3, 1 << 24])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_agrees_with_the_loop(
    dtype: torch.dtype, kv_heads: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ELEMENTS_PER_PASS", elements)
    queries = torch.randn(9, 4, 2, 8).to(dtype).permute(2, 1, 0, 3)
    keys = torch.randn(2, kv_heads, 9, 8).to(dtype)
    allowed = (torch.ones(9, 9).tril() > 0) & (torch.rand(2, 1, 9) < 0.7) | (torch.eye(9) > 0)
    fast = attention_page_rank(queries, keys, 0.4, allowed)
    for picture in range(2):
        logits = reference.attention_logits(queries[picture], keys[picture], 0.4, allowed[picture])
        torch.testing.assert_close(fast[picture].tolist(), reference.page_rank(logits), rtol=1e-9, atol=0)


def test_maps_of_few_heads_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def walk(logits: torch.Tensor, *options: Any) -> torch.Tensor:
        sizes.append(logits.shape[1])
        return logits.sum(-1)

    monkeypatch.setattr(module, "_walk", walk)
    monkeypatch.setattr(module, "_ELEMENTS_PER_PASS", 2 * 9 * 9 * 3)
    states = torch.zeros(2, 8, 9, 4)
    attention_page_rank(states, states, 1.0, torch.ones(2, 9, 9, dtype=torch.bool))
    assert sizes == [3, 3, 2]


def test_zero_states_share_alike() -> None:
    states = torch.zeros(1, 2, 7, 4)
    ranks = attention_page_rank(states, states, 1.0, torch.ones(1, 7, 7, dtype=torch.bool))
    torch.testing.assert_close(ranks, torch.full((1, 7), 1 / 7, dtype=torch.float64))


def test_what_is_nearly_nothing_keeps_its_order() -> None:
    """Where a first token draws all attention, single precision would leave nothing to compare."""
    logits = torch.full((1, 2, 5, 5), -14.0).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e30)
    logits[..., 0] = 0
    logits[..., 3] += torch.tensor([0.0, 0, 0, 1, 1])
    ranks = page_rank(logits)[0].tolist()
    assert ranks.index(max(ranks)) == 0
    assert len(set(ranks)) == 5
    assert min(ranks) > 0
    assert max(ranks[1:]) < 1e-38


def test_autocast_does_not_matter() -> None:
    states = torch.randn(1, 2, 9, 8)
    allowed = torch.ones(1, 9, 9, dtype=torch.bool)
    assert_unchanged_by_autocast(lambda: [attention_page_rank(states, states, 1.0, allowed)])


@few
@given(st.integers(1, 120), st.integers(1, 4), st.sampled_from(DTYPES), st.booleans())
def test_ranks_are_those_of_a_walk(tokens: int, batch: int, dtype: torch.dtype, causal: bool) -> None:
    queries, keys = torch.randn(batch, 2, tokens, 4).to(dtype), torch.randn(batch, 1, tokens, 4).to(dtype)
    allowed = torch.ones(batch, tokens, tokens, dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    ranks = attention_page_rank(queries, keys, 0.5, allowed)
    assert ranks.shape == (batch, tokens)
    assert bool(ranks.isfinite().all())
    assert bool((ranks >= 0).all())
    # The mean of squares is between the squared mean and the mean over heads of what adds up to 1.
    assert bool((ranks.sum(dim=1) >= 1 - 1e-9).all())
    assert bool((ranks.sum(dim=1) <= 2**0.5 + 1e-9).all())
    alone = attention_page_rank(queries[:1], keys[:1], 0.5, allowed[:1])
    torch.testing.assert_close(alone, ranks[:1], rtol=1e-9, atol=1e-300)


def test_absent_tokens_do_not_matter() -> None:
    queries, keys = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    allowed = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    present = torch.tensor([[True] * 6 + [False] * 3] * 2)
    start = present.double() / 6
    ranks = attention_page_rank(queries, keys, 0.4, allowed & present.unsqueeze(1), start)
    cut = attention_page_rank(queries[:, :, :6], keys[:, :, :6], 0.4, allowed[:, :6, :6])
    torch.testing.assert_close(ranks[:, :6], cut)
    assert not ranks[:, 6:].any()


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 query heads do not divide among 2 key heads"):
        attention_page_rank(torch.zeros(1, 3, 2, 4), torch.zeros(1, 2, 2, 4), 1.0, torch.ones(1, 2, 2) > 0)
