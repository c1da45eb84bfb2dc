"""Propagated importance equals its plain loop, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast, inputs, pictures, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.propagation import propagated_importance
from vtprune.ops.reference import propagation as reference
from vtprune.ops.rounded_cosine import rounded_cosine


@inputs
@pytest.mark.parametrize("tokens", [1, 2, 23])
@pytest.mark.parametrize(("threshold", "temperature", "steps"), [(0.5, 0.1, 5), (0.0, 0.003, 1), (0.2, 2.0, 2)])
def test_equals_the_loop(
    kind: str, dtype: torch.dtype, tokens: int, threshold: float, temperature: float, steps: int
) -> None:
    states = tokens_of(kind, 2, tokens, 4).to(dtype)
    fast = propagated_importance(states, threshold=threshold, temperature=temperature, steps=steps)
    assert fast.dtype == torch.float32
    for picture in range(2):
        slow = reference.propagated_importance(
            states[picture], threshold=threshold, temperature=temperature, steps=steps
        )
        torch.testing.assert_close(fast[picture], torch.tensor(slow), rtol=1e-5, atol=1e-7)


@settings(max_examples=25)
@given(pictures(dim=4), st.sampled_from([0.1, 1.0]), st.integers(1, 4))
def test_importance_is_neither_made_nor_lost(states: torch.Tensor, temperature: float, steps: int) -> None:
    scores = propagated_importance(states, temperature=temperature, steps=steps)
    assert bool(scores.isfinite().all())
    assert bool((scores >= 0).all())
    cosine = rounded_cosine(states, states)
    cosine.diagonal(dim1=1, dim2=2).fill_(1)
    arrived = (scores * (cosine >= 0.5).sum(-1)).double().sum(1)
    torch.testing.assert_close(arrived, states.double().norm(dim=-1).sum(1), rtol=1e-5, atol=1e-5)
    alone = propagated_importance(states[-1:], temperature=temperature, steps=steps)
    torch.testing.assert_close(alone, scores[-1:])


def test_edges_that_vanish_in_float32_do_not_count() -> None:
    states = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    # Both tokens are alike for the walk: half of the importance each, or all of it without an edge.
    torch.testing.assert_close(propagated_importance(states, temperature=0.03), torch.full((1, 2), 0.5))
    torch.testing.assert_close(propagated_importance(states, temperature=0.003), torch.ones(1, 2))


def test_equal_tokens_tie_exactly() -> None:
    kinds = torch.arange(577) % 10
    scores = propagated_importance(torch.randn(3, 10, 5)[:, kinds], temperature=1.0)
    assert torch.equal(scores, scores[:, :10][:, kinds])


def test_autocast_does_not_lower_the_precision() -> None:
    states = torch.randn(2, 63, 4)
    assert_unchanged_by_autocast(lambda: [propagated_importance(states)])
