"""Weighted coverage equals its plain loop, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast, inputs, pictures, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.coverage import weighted_coverage
from vtprune.ops.reference import coverage as reference


@inputs
@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (2, 1), (15, 1), (15, 6), (15, 15)])
@pytest.mark.parametrize(("sharpness", "add", "fill"), [(1.0, False, True), (0.5, False, False), (2.0, True, True)])
def test_equals_the_loop(
    kind: str, dtype: torch.dtype, tokens: int, keep: int, sharpness: float, add: bool, fill: bool
) -> None:
    states = tokens_of(kind, 2, tokens, 16).to(dtype)
    saliency = (torch.randint(0, 5, (2, tokens)) / 4).to(dtype)
    fast = weighted_coverage(states, saliency, keep, sharpness=sharpness, add=add, fill_by_saliency=fill)
    for picture in range(2):
        slow = reference.weighted_coverage(
            states[picture],
            saliency[picture].tolist(),
            keep,
            sharpness=sharpness,
            add=add,
            fill_by_saliency=fill,
        )
        assert fast[picture].tolist() == slow


@settings(max_examples=25)
@given(pictures(), st.data())
def test_picks_are_distinct_nested_and_free_of_batch_mates(states: torch.Tensor, data: st.DataObject) -> None:
    batch, tokens, _ = states.shape
    saliency = states.new_zeros(batch, tokens) if data.draw(st.booleans()) else torch.rand(batch, tokens)
    keep = data.draw(st.integers(1, min(tokens, 100_000 // tokens // batch + 1)))
    picks = weighted_coverage(states, saliency, keep)
    assert all(len(set(row)) == keep and set(row) <= set(range(tokens)) for row in picks.tolist())
    assert weighted_coverage(states, saliency, (keep + 1) // 2).tolist() == picks[:, : (keep + 1) // 2].tolist()
    assert weighted_coverage(states[-1:], saliency[-1:], keep).tolist() == picks[-1:].tolist()


def test_after_full_coverage_saliency_goes_on() -> None:
    kinds = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2, 0])][None]
    saliency = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.1, 0.6, 0.7]])
    assert weighted_coverage(kinds, saliency, 7).tolist() == [[6, 5, 1, 3, 2, 0, 4]]
    assert weighted_coverage(kinds, saliency, 7, fill_by_saliency=False).tolist() == [[6, 5, 1, 0, 2, 3, 4]]


def test_rounding_makes_no_gain_of_a_duplicate() -> None:
    states = torch.randn(1, 20, 50, dtype=torch.float64).repeat(1, 2, 1)
    states[:, 20:] *= torch.rand(1, 20, 1, dtype=torch.float64) + 1
    saliency = torch.rand(1, 40, dtype=torch.float64)
    picks = weighted_coverage(states, saliency, 40)[0].tolist()
    assert sorted(pick % 20 for pick in picks[:20]) == list(range(20))
    assert picks[20:] == sorted(picks[20:], key=lambda pick: -float(saliency[0, pick]))


def test_autocast_does_not_lower_the_precision() -> None:
    states, saliency = torch.randn(2, 63, 16), torch.rand(2, 63)
    assert_unchanged_by_autocast(lambda: [weighted_coverage(states, saliency, 30)])


@pytest.mark.parametrize("keep", [0, 5])
def test_refusals_name_the_value_and_the_range(keep: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 4 .*got {keep}"):
        weighted_coverage(torch.ones(1, 4, 2), torch.ones(1, 4), keep)
