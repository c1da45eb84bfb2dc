"""Absorbing equals its plain loop, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast, inputs, pictures, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.absorb import absorb
from vtprune.ops.reference import absorb as reference


def parts(batch: int, tokens: int, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    shuffled = torch.rand(batch, tokens).argsort(1)
    return shuffled[:, :keep], shuffled[:, keep:]


@inputs
@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (2, 1), (23, 1), (23, 7), (23, 22), (23, 23)])
def test_equals_the_loop(kind: str, dtype: torch.dtype, tokens: int, keep: int) -> None:
    features = tokens_of(kind, 3, tokens, 16).to(dtype)
    kept, dropped = parts(3, tokens, keep)
    merged, assigned = absorb(features, kept, dropped)
    assert merged.dtype == dtype
    for picture in range(3):
        expected, went = reference.absorb(features[picture], kept[picture].tolist(), dropped[picture].tolist())
        assert assigned[picture].tolist() == went
        torch.testing.assert_close(merged[picture], expected.to(dtype))


@settings(max_examples=25)
@given(pictures(), st.data())
def test_nothing_is_lost(states: torch.Tensor, data: st.DataObject) -> None:
    batch, tokens, _ = states.shape
    kept, dropped = parts(batch, tokens, data.draw(st.integers(1, tokens)))
    merged, assigned = absorb(states.double(), kept, dropped)
    members = 1 + (assigned.unsqueeze(-1) == torch.arange(kept.shape[1])).sum(1)
    torch.testing.assert_close((merged * members.unsqueeze(-1)).sum(1), states.double().sum(1))
    alone, its = absorb(states[-1:], kept[-1:], dropped[-1:])
    assert torch.equal(its, assigned[-1:])
    torch.testing.assert_close(alone, merged[-1:].to(states.dtype))


def test_equally_like_tokens_go_to_the_first() -> None:
    features = torch.tensor([[[0.3, 0.1], [0.6, 0.2], [0.0, 0.0], [1.5, 0.5]]], dtype=torch.float64)
    assert absorb(features, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]))[1].tolist() == [[0, 0]]
    assert absorb(features, torch.tensor([[1, 0]]), torch.tensor([[2, 3]]))[1].tolist() == [[0, 0]]


def test_gradients_reach_every_token() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]], requires_grad=True)
    absorb(features, torch.tensor([[0, 1]]), torch.tensor([[2]]))[0].sum().backward()
    assert features.grad is not None
    assert features.grad[0, :, 0].tolist() == [1.0, 0.5, 0.5]


def test_autocast_does_not_lower_the_precision() -> None:
    features, (kept, dropped) = torch.randn(2, 63, 16), parts(2, 63, 20)
    assert_unchanged_by_autocast(lambda: absorb(features, kept, dropped))
