"""Attention rows recomputed from states equal the plain loops, grouped-query heads included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.attention import attention_rows, mean_received_attention
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
