"""Merging by nearest keys: equal to its plain loop, and what holds for every input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from awkward import inputs, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.neighbour_merge import nearest_others, neighbour_merge, weighted_rest
from vtprune.ops.reference import neighbour_merge as reference

few = settings(max_examples=40)


@inputs
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    ("tokens", "centres", "neighbours"), [(1, 1, 32), (2, 1, 1), (37, 9, 0), (37, 9, 5), (24, 24, 20), (20, 3, 32)]
)
def test_merge(kind: str, dtype: torch.dtype, tokens: int, centres: int, neighbours: int, average: bool) -> None:
    features, keys = torch.randn(2, tokens, 5).to(dtype), tokens_of(kind, 2, tokens, 16).to(dtype)
    weights = torch.rand(2, tokens).softmax(-1).to(dtype)
    chosen = torch.stack([torch.randperm(tokens)[:centres] for _ in range(2)])
    fast = neighbour_merge(features, keys, weights, chosen, neighbours, average=average)
    assert fast.dtype == dtype
    for picture in range(2):
        arguments = (features[picture], keys[picture], weights[picture], chosen[picture].tolist(), neighbours)
        torch.testing.assert_close(fast[picture], reference.neighbour_merge(*arguments, average=average).to(dtype))


@inputs
@pytest.mark.parametrize(("tokens", "count"), [(1, 0), (2, 1), (37, 36), (37, 8)])
def test_nearest(kind: str, dtype: torch.dtype, tokens: int, count: int) -> None:
    keys = tokens_of(kind, 2, tokens, 16).to(dtype)
    near = nearest_others(keys, torch.arange(tokens).expand(2, -1), count)
    for picture in range(2):
        slow = [reference.nearest_others(keys[picture], centre, count) for centre in range(tokens)]
        assert near[picture].tolist() == slow


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rest(dtype: torch.dtype, average: bool) -> None:
    features, weights = torch.randn(3, 37, 5).to(dtype), torch.rand(3, 37).to(dtype)
    rest = torch.rand(3, 37) < 0.5
    rest[1] = False
    fast = weighted_rest(features, weights, rest, average=average)
    assert fast.dtype == dtype
    for picture in range(3):
        members = [token for token in range(37) if rest[picture, token]]
        slow = reference.weighted_rest(features[picture], weights[picture], members, average=average)
        torch.testing.assert_close(fast[picture, 0], slow.to(dtype))


@st.composite
def pictures(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys with many duplicates, constant or zero ones, of any type, not always contiguous; and centres, repeated."""
    batch, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 700))
    make = draw(st.sampled_from([plain, signs, with_zeros, constant, strided]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    centres = torch.randint(0, tokens, (batch, draw(st.integers(1, 30))))
    return tokens_of(kind, batch, tokens, 4).to(dtype), centres


@few
@given(pictures(), st.data())
def test_neighbours_are_distinct_others(picture: tuple[torch.Tensor, torch.Tensor], data: st.DataObject) -> None:
    keys, centres = picture
    count = data.draw(st.integers(0, keys.shape[1] - 1))
    near = nearest_others(keys, centres, count)
    for row, centre in zip(near.flatten(0, 1).tolist(), centres.flatten().tolist(), strict=True):
        assert len({*row, centre}) == count + 1


@few
@given(pictures(), st.integers(0, 40))
def test_means_of_constants_are_constants(picture: tuple[torch.Tensor, torch.Tensor], neighbours: int) -> None:
    keys, centres = picture
    features = torch.full((*keys.shape[:2], 2), 0.5, dtype=keys.dtype)
    weights = torch.rand(keys.shape[:2]) + 0.1
    mean = neighbour_merge(features, keys, weights, centres, neighbours, average=True)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5))
    added = neighbour_merge(features, keys, weights, centres, neighbours)
    assert bool((added >= 0.5).all())
    assert bool((added > 0.5).all()) == (min(neighbours, keys.shape[1] - 1) > 0)


def test_without_weights_sums_are_the_centres() -> None:
    features, none, centres = torch.randn(2, 9, 3), torch.zeros(2, 9), torch.tensor([[4, 1], [8, 8]])
    added = neighbour_merge(features, features, none, centres, 4)
    assert torch.equal(added, torch.stack([features[0, [4, 1]], features[1, [8, 8]]]))
    assert not neighbour_merge(features, features, none, centres, 4, average=True).any()
    assert not weighted_rest(features, none, torch.ones(2, 9).bool(), average=True).any()


def test_autocast_does_not_lower_the_precision() -> None:
    features, weights = torch.randn(2, 63, 32) + 3.0, torch.rand(2, 63)
    centres, rest = torch.arange(20).expand(2, -1), torch.rand(2, 63) < 0.5

    def everything() -> list[torch.Tensor]:
        return [
            nearest_others(features, centres, 20),
            neighbour_merge(features, features, weights, centres, 20),
            weighted_rest(features, weights, rest),
        ]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_refusals_name_the_value_and_the_range() -> None:
    states, centres = torch.ones(1, 4, 2), torch.tensor([[0]])
    with pytest.raises(ValueError, match="at least 0, got -1"):
        neighbour_merge(states, states, torch.ones(1, 4), centres, -1)
    with pytest.raises(ValueError, match=r"from 0 to 3 .*got 4"):
        nearest_others(states, centres, 4)
