"""Attention rows recomputed from states equal the plain loops, grouped-query heads included."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.attention import (
    QueryRows,
    attention_of,
    attention_rows,
    mean_received_attention,
    strongest_received,
)
from vtprune.ops.reference import attention as reference


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_equal_the_loop(kv_heads: int, dtype: torch.dtype) -> None:
    queries, keys = torch.randn(2, 4, 3, 8).to(dtype), torch.randn(2, kv_heads, 7, 8).to(dtype)
    allowed = torch.rand(2, 1, 3, 7) < 0.6
    allowed[..., 0] = True
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    found = attention_rows(queries, keys, 0.3, allowed)
    torch.testing.assert_close(attention_rows(queries, keys, 0.3, additive), found)
    for batch in range(2):
        for head in range(4):
            for row in range(3):
                expected = reference.attention_row(
                    queries[batch, head, row], keys[batch, head * kv_heads // 4], 0.3, allowed[batch, 0, row].tolist()
                )
                torch.testing.assert_close(found[batch, head, row], torch.tensor(expected), atol=1e-6, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20))
def test_received_attention_equals_the_loop_in_any_chunks(tokens: int, chunk: int) -> None:
    queries, keys = torch.randn(2, 2, tokens, 4), torch.randn(2, 2, tokens, 4)
    found = mean_received_attention(queries, keys, 0.5, chunk)
    expected = [[reference.mean_received_attention(queries[b, h], keys[b, h], 0.5) for h in range(2)] for b in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2))


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="3 query heads do not divide among 2 key heads"):
        attention_rows(torch.zeros(1, 3, 1, 4), torch.zeros(1, 2, 5, 4), 1.0)


@pytest.mark.parametrize("length", [70, 133, 333])
def test_a_padded_batch_mate_changes_no_bit(length: int) -> None:
    queries, keys = torch.randn(2, 4, length, 32).bfloat16(), torch.randn(2, 2, length, 32).bfloat16()
    present = torch.ones(2, length, dtype=torch.bool)
    present[1, :9] = False
    slots = torch.arange(5, length - 6).expand(2, -1)
    counted = torch.rand(2, 2, slots.shape[1]) < 0.5
    counted[:, 1, :20] = True
    targets = slots[:, 3:]
    together = QueryRows(queries, keys, 0.2, slots=slots, causal=True, present=present, targets=targets)
    alone = QueryRows(queries[:1], keys[:1], 0.2, slots=slots[:1], causal=True, targets=targets[:1])
    assert torch.equal(attention_of(together)[:1], attention_of(alone))
    assert torch.equal(strongest_received(together, counted)[:1], strongest_received(alone, counted[:1]))


def test_causal_rows_equal_those_under_their_mask() -> None:
    queries, keys = torch.randn(2, 4, 300, 16), torch.randn(2, 4, 330, 16)
    slots = torch.stack([torch.arange(40, 240), torch.randperm(300)[:200]])
    samples, targets = torch.tensor([1, 0]), torch.randint(0, 330, (2, 50))
    rows = QueryRows(queries, keys, 0.2, slots=slots, samples=samples, causal=True, first=30, targets=targets)
    mask = torch.arange(330) <= torch.arange(30, 330).unsqueeze(1)
    masked = dataclasses.replace(rows, causal=False, mask=mask[None, None])
    torch.testing.assert_close(attention_of(rows), attention_of(masked))
    counted = torch.rand(2, 3, 200) < 0.4
    torch.testing.assert_close(strongest_received(rows, counted), strongest_received(masked, counted))
