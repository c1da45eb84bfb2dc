"""Clustering with a cutoff: against the sequential rule, and what holds for every input."""

from __future__ import annotations

import pytest
import torch
from awkward import DTYPES, assert_unchanged_by_autocast, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.distance_clusters import budget_centres, cluster_means, cosine_distance, density_centres
from vtprune.ops.reference import distance_clusters as reference

few = settings(max_examples=25)


KINDS = ("plain", "signs", "with_zeros", "constant", "duplicates", "walk", "strided")
INPUTS = [
    *((kind, torch.float32) for kind in KINDS),
    *((kind, dtype) for kind in ("plain", "with_zeros", "walk") for dtype in (torch.bfloat16, torch.float16)),
]
inputs = pytest.mark.parametrize(("kind", "dtype"), INPUTS, ids=str)
CUTOFFS = (0.05, 0.25, 0.9)


@inputs
@pytest.mark.parametrize("tokens", [1, 2, 23])
def test_distances_agree_with_the_loop(kind: str, dtype: torch.dtype, tokens: int) -> None:
    states = tokens_of(kind, 2, tokens, 16).to(dtype)
    distance = cosine_distance(states)
    assert torch.equal(distance, distance.mT)
    for picture in range(2):
        torch.testing.assert_close(
            distance[picture], reference.cosine_distance(states[picture]), rtol=1e-5, atol=1e-6, check_dtype=False
        )


@inputs
@pytest.mark.parametrize("tokens", [1, 2, 23, 63])
def test_centres_agree_with_the_sequential_rule(kind: str, dtype: torch.dtype, tokens: int) -> None:
    distance = cosine_distance(tokens_of(kind, 2, tokens, 16).to(dtype))
    for cutoff in CUTOFFS:
        centres = density_centres(distance, cutoff)
        slow = [reference.density_centres(picture, cutoff) for picture in distance]
        assert [row.nonzero().flatten().tolist() for row in centres] == slow


@inputs
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (2, 1), (2, 2), (23, 1), (23, 7), (23, 22), (23, 23)])
def test_budget_agrees_with_the_loop(kind: str, dtype: torch.dtype, tokens: int, count: int) -> None:
    distance = cosine_distance(tokens_of(kind, 2, tokens, 16).to(dtype))
    for cutoff in CUTOFFS:
        centres, moved = budget_centres(distance, count, cutoff)
        for picture in range(2):
            slow, where = reference.budget_centres(distance[picture], count, cutoff)
            assert centres[picture].tolist() == slow
            assert moved[picture].item() == where


@inputs
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (23, 1), (23, 7), (23, 23)])
def test_means_agree_with_the_loop(kind: str, dtype: torch.dtype, tokens: int, count: int) -> None:
    distance = cosine_distance(tokens_of(kind, 2, tokens, 16).to(dtype))
    features, joins = torch.randn(2, tokens, 5).to(dtype), torch.rand(2, tokens) < 0.6
    centres = torch.stack([torch.randperm(tokens)[:count].sort().values for _ in range(2)])
    joins.scatter_(1, centres, True)
    to_centres = distance.gather(2, centres.unsqueeze(1).expand(-1, tokens, -1))
    means, sizes = cluster_means(features, to_centres, centres, joins, torch.ones_like(centres, dtype=torch.bool))
    assert means.dtype == dtype
    for picture in range(2):
        slow, members = reference.cluster_means(
            features[picture], to_centres[picture], centres[picture].tolist(), joins[picture].tolist()
        )
        torch.testing.assert_close(means[picture], slow)
        assert sizes[picture].tolist() == members


def test_centres_that_fill_up_draw_no_members() -> None:
    distance = cosine_distance(torch.randn(1, 23, 4))
    centres = torch.tensor([[3, 9, 15]])
    to_centres = distance[:, :, centres[0]]
    joins = torch.ones(1, 23, dtype=torch.bool)
    features = torch.randn(1, 23, 5)
    means, sizes = cluster_means(features, to_centres, centres, joins, torch.tensor([[True, True, False]]))
    alone, members = cluster_means(
        features, to_centres[:, :, :2], centres[:, :2], joins, torch.ones(1, 2, dtype=torch.bool)
    )
    torch.testing.assert_close(means[:, :2], alone)
    assert sizes[0, :2].tolist() == members[0].tolist()
    assert members.sum() == 23


@pytest.mark.parametrize("count", [3, 40, 200])
def test_a_long_chain_is_settled(count: int) -> None:
    """Tokens along an arc, each waiting for its denser neighbour, as many as in a picture."""
    angle = torch.linspace(0, 3, 576) ** 1.3
    distance = cosine_distance(torch.stack([angle.cos(), angle.sin()], dim=1)[None])
    centres, moved = budget_centres(distance, count, 0.21)
    cutoff = float(moved)
    exact = density_centres(distance, cutoff)[0].nonzero().flatten().tolist()
    assert set(exact) <= set(centres[0].tolist())
    assert len(exact) > 0.8 * count


@few
@given(st.integers(1, 700), st.data())
def test_any_size_and_budget(tokens: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, tokens))
    batch = data.draw(st.integers(1, 4)) if tokens < 200 else 1
    kind = data.draw(st.sampled_from(KINDS))
    dtype = data.draw(st.sampled_from(DTYPES))
    distance = cosine_distance(tokens_of(kind, batch, tokens, 4).to(dtype))
    centres, moved = budget_centres(distance, count, 0.21)
    assert centres.shape == (batch, count)
    assert all(row == sorted(set(row)) for row in centres.tolist())
    assert int(centres.max()) < tokens
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 2


@few
@given(st.integers(1, 60), st.floats(0.01, 1.9), st.sampled_from(KINDS))
def test_what_the_cutoff_promises(tokens: int, cutoff: float, kind: str) -> None:
    distance = cosine_distance(tokens_of(kind, 2, tokens, 8))
    is_centre = density_centres(distance, cutoff)
    for picture in range(2):
        centres = is_centre[picture].nonzero().flatten()
        between = distance[picture][centres][:, centres]
        between.fill_diagonal_(torch.inf)
        assert bool((between > cutoff).all())
        assert bool((distance[picture][:, centres].amin(dim=1) <= cutoff).all())
        budget, moved = budget_centres(distance[picture][None], len(centres), cutoff)
        assert budget[0].tolist() == centres.tolist()
        assert float(moved) == pytest.approx(cutoff)


@pytest.mark.parametrize("cutoff", [0.5, 0.75, 0.875])
def test_a_token_at_the_cutoff_is_no_centre(cutoff: float) -> None:
    distance = cosine_distance(tokens_of("signs", 1, 23, 16))
    assert bool((distance == cutoff).any())
    centres = reference.density_centres(distance[0], cutoff)
    found, moved = budget_centres(distance, len(centres), cutoff)
    assert density_centres(distance, cutoff)[0].nonzero().flatten().tolist() == found[0].tolist() == centres
    assert moved.item() == cutoff


def test_autocast_does_not_reach_the_distances() -> None:
    states = torch.randn(2, 23, 16)
    assert_unchanged_by_autocast(lambda: [cosine_distance(states)])


def test_copies_of_a_centre_keep_their_own_clusters() -> None:
    distance = cosine_distance(tokens_of("constant", 1, 5, 3))
    centres, _ = budget_centres(distance, 3, 0.21)
    every = torch.ones(1, 5, dtype=torch.bool)
    to_centres = distance.gather(2, centres.unsqueeze(1).expand(-1, 5, -1))
    _, sizes = cluster_means(torch.randn(1, 5, 2), to_centres, centres, every, every[:, :3])
    assert sizes.tolist() == [[3.0, 1.0, 1.0]]


def test_bad_budget_is_refused() -> None:
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"keep must be from 1 to 5 .*got {count}"):
            budget_centres(torch.zeros(1, 5, 5), count, 0.21)
