"""Merging by nearest keys: equal to its plain loop, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast, inputs, pictures, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.neighbour_merge import nearest_others, neighbour_merge, weighted_rest
from vtprune.ops.reference import neighbour_merge as reference

few = settings(max_examples=40)


@inputs
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("with_bonus", [False, True])
@pytest.mark.parametrize(
    ("tokens", "centres", "neighbours"), [(1, 1, 32), (2, 1, 1), (37, 9, 0), (37, 9, 5), (24, 24, 20), (20, 3, 32)]
)
def test_merge(
    kind: str, dtype: torch.dtype, tokens: int, centres: int, neighbours: int, with_bonus: bool, average: bool
) -> None:
    features, keys = torch.randn(2, tokens, 5).to(dtype), tokens_of(kind, 2, tokens, 16).to(dtype)
    weights = torch.rand(2, tokens).softmax(-1).to(dtype)
    chosen = torch.stack([torch.randperm(tokens)[:centres] for _ in range(2)])
    # In the second picture the bonus is a tie wherever the cosine is one.
    bonus = torch.stack([torch.rand(tokens), torch.ones(tokens)]).to(dtype) if with_bonus else None
    fast = neighbour_merge(features, keys, weights, chosen, neighbours, average=average, bonus=bonus)
    assert fast.dtype == dtype
    for picture in range(2):
        arguments = (features[picture], keys[picture], weights[picture], chosen[picture].tolist(), neighbours)
        own = None if bonus is None else bonus[picture]
        slow = reference.neighbour_merge(*arguments, average=average, bonus=own)
        torch.testing.assert_close(fast[picture], slow.to(dtype))


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
def keys_and_centres(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of every kind, and centres, some of them repeated."""
    keys = draw(pictures(dim=4))
    return keys, torch.randint(0, keys.shape[1], (keys.shape[0], draw(st.integers(1, 30))))


@few
@given(keys_and_centres(), st.data())
def test_neighbours_are_distinct_others(picture: tuple[torch.Tensor, torch.Tensor], data: st.DataObject) -> None:
    keys, centres = picture
    count = data.draw(st.integers(0, keys.shape[1] - 1))
    near = nearest_others(keys, centres, count)
    for row, centre in zip(near.flatten(0, 1).tolist(), centres.flatten().tolist(), strict=True):
        assert len({*row, centre}) == count + 1


@few
@given(keys_and_centres(), st.integers(0, 40))
def test_means_of_constants_are_constants(picture: tuple[torch.Tensor, torch.Tensor], neighbours: int) -> None:
    keys, centres = picture
    features = torch.full((*keys.shape[:2], 2), 0.5, dtype=keys.dtype)
    weights = torch.rand(keys.shape[:2]) + 0.1
    mean = neighbour_merge(features, keys, weights, centres, neighbours, average=True)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5))
    added = neighbour_merge(features, keys, weights, centres, neighbours)
    assert bool((added >= 0.5).all())
    assert bool((added > 0.5).all()) == (min(neighbours, keys.shape[1] - 1) > 0)


@few
@given(keys_and_centres(), st.integers(0, 40))
def test_every_picture_is_its_own(picture: tuple[torch.Tensor, torch.Tensor], count: int) -> None:
    keys, centres = picture
    bonus, count = torch.rand(keys.shape[:2]), min(count, keys.shape[1] - 1)
    alone = nearest_others(keys[:1], centres[:1], count, bonus=bonus[:1])
    assert torch.equal(alone, nearest_others(keys, centres, count, bonus=bonus)[:1])


def test_a_large_bonus_chooses_the_neighbours() -> None:
    features, weights, bonus = torch.randn(1, 9, 3), torch.full((1, 9), 0.25), torch.zeros(1, 9)
    bonus[0, 7] = 50.0
    added = neighbour_merge(features, torch.randn(1, 9, 3), weights, torch.tensor([[4, 7]]), 1, bonus=bonus)
    torch.testing.assert_close(added[0, 0], features[0, 4] + 0.25 * features[0, 7])
    assert not torch.equal(added[0, 1], 1.25 * features[0, 7])


def test_no_token_is_needed() -> None:
    states, none = torch.empty(2, 0, 3), torch.empty(2, 0)
    assert neighbour_merge(states, states, none, none.long(), bonus=none).shape == (2, 0, 3)


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
            neighbour_merge(features, features, weights, centres, 20, bonus=weights),
            weighted_rest(features, weights, rest),
        ]

    assert_unchanged_by_autocast(everything)


def test_refusals_name_the_value_and_the_range() -> None:
    states, centres = torch.ones(1, 4, 2), torch.tensor([[0]])
    with pytest.raises(ValueError, match="at least 0, got -1"):
        neighbour_merge(states, states, torch.ones(1, 4), centres, -1)
    with pytest.raises(ValueError, match=r"from 0 to 3 .*got 4"):
        nearest_others(states, centres, 4)
