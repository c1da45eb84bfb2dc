"""Rounded cosines equal their plain loop and tie wherever they should."""

from __future__ import annotations

import torch
from awkward import inputs, pictures, tokens_of
from hypothesis import given, settings

from vtprune.ops.reference import rounded_cosine as reference
from vtprune.ops.rounded_cosine import rounded_cosine


@inputs
def test_equals_the_loop(kind: str, dtype: torch.dtype) -> None:
    first, second = tokens_of(kind, 2, 7, 16).to(dtype), tokens_of(kind, 2, 5, 16).to(dtype)
    for picture, found in enumerate(rounded_cosine(first, second)):
        slow = [[reference.rounded_cosine(one, other) for other in second[picture]] for one in first[picture]]
        torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1.01 * 2.0**-30)


@settings(max_examples=40)
@given(pictures(largest=200))
def test_sums_are_exact_and_zero_vectors_resemble_nothing(states: torch.Tensor) -> None:
    cosine = rounded_cosine(states, states)
    assert torch.equal(cosine * 2**30, (cosine * 2**30).round())
    assert torch.equal(cosine.sum(1), cosine.flip(1).cumsum(1)[:, -1])
    is_zero = (states == 0).all(-1)
    assert torch.equal(cosine.diagonal(dim1=1, dim2=2), (~is_zero).double())
    assert not cosine[is_zero].any()


def test_autocast_does_not_lower_the_precision() -> None:
    states = torch.randn(2, 20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rounded_cosine(states, states)
    assert torch.equal(found, rounded_cosine(states, states))
