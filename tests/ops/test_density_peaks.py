"""Clustering around density peaks: against the plain loop, and what holds for every input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.density_peaks import cluster_means, density_peaks
from vtprune.ops.reference import density_peaks as reference

few = settings(max_examples=25)


def plain(batch: int, count: int, dim: int) -> torch.Tensor:
    return torch.randn(batch, count, dim)


def signs(batch: int, count: int, dim: int) -> torch.Tensor:
    """Vectors of +1 and -1: squared distances are whole numbers, so that ties are plentiful and true."""
    return torch.randint(0, 2, (batch, count, dim)).float() * 2 - 1


def with_zeros(batch: int, count: int, dim: int) -> torch.Tensor:
    return signs(batch, count, dim).masked_fill(torch.rand(batch, count, 1) < 0.3, 0)


def constant(batch: int, count: int, dim: int) -> torch.Tensor:
    return torch.full((batch, count, dim), 0.1)


def duplicates(batch: int, count: int, dim: int) -> torch.Tensor:
    return torch.randn(batch, 1 + count // 4, dim)[:, torch.randint(0, 1 + count // 4, (count,))]


def strided(batch: int, count: int, dim: int) -> torch.Tensor:
    return torch.randn(dim, count, 2 * batch)[:, :, ::2].permute(2, 1, 0)


Maker = Callable[[int, int, int], torch.Tensor]
MAKERS: tuple[Maker, ...] = (plain, signs, with_zeros, constant, duplicates, strided)
INPUTS: list[tuple[Maker, torch.dtype]] = [
    *((make, torch.float32) for make in MAKERS),
    *((make, dtype) for make in (plain, with_zeros, duplicates) for dtype in (torch.bfloat16, torch.float16)),
]
inputs = pytest.mark.parametrize(("make", "dtype"), INPUTS)


@inputs
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (2, 1), (2, 2), (33, 1), (33, 4), (33, 9), (33, 33)])
def test_clusters_agree_with_the_loop(make: Maker, dtype: torch.dtype, count: int, clusters: int) -> None:
    points, features = make(2, count, 16).to(dtype), plain(2, count, 5).to(dtype)
    centres, cluster = density_peaks(points, clusters)
    means = cluster_means(features, cluster, clusters)
    assert means.dtype == dtype
    for picture in range(2):
        chosen, went = reference.density_peaks(points[picture], clusters)
        assert centres[picture].tolist() == chosen
        assert cluster[picture].tolist() == went
        torch.testing.assert_close(means[picture], reference.cluster_means(features[picture], went, clusters).to(dtype))


def test_noise_decides_among_equal_densities() -> None:
    points, noise = constant(1, 9, 4), torch.rand(1, 9, dtype=torch.float64) * 1e-6
    points = torch.cat([points, -points], dim=1)
    noise = torch.cat([noise, noise.flip(1)], dim=1)
    centres, cluster = density_peaks(points, 4, noise=noise)
    chosen, went = reference.density_peaks(points[0], 4, noise[0].tolist())
    assert centres[0].tolist() == chosen != density_peaks(points, 4)[0][0].tolist()
    assert cluster[0].tolist() == went


def test_three_heaps_are_found() -> None:
    heaps = torch.tensor([0.0, 2.0, 4.0]).repeat_interleave(10)
    points = torch.stack([heaps, heaps + torch.randn(30) * 0.05], dim=1)[None]
    shuffled = torch.randperm(30)
    _, cluster = density_peaks(points[:, shuffled], 3)
    whose = [set(cluster[0, shuffled // 10 == heap].tolist()) for heap in range(3)]
    assert all(len(found) == 1 for found in whose)
    assert len(set.union(*whose)) == 3


def test_gradient_reaches_every_point() -> None:
    features = torch.randn(1, 12, 3, requires_grad=True)
    _, cluster = density_peaks(features, 4)
    cluster_means(features, cluster, 4).sum().backward()
    assert features.grad is not None
    assert bool((features.grad > 0).all())


def test_autocast_changes_nothing() -> None:
    points = plain(2, 60, 32)
    centres, cluster = density_peaks(points, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, its = density_peaks(points, 7)
        means = cluster_means(points, cluster, 7)
    assert torch.equal(half, centres)
    assert torch.equal(its, cluster)
    torch.testing.assert_close(means, cluster_means(points, cluster, 7), rtol=0, atol=0)


@pytest.mark.parametrize("clusters", [0, 6])
def test_impossible_numbers_of_clusters_are_refused(clusters: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 5 .*, got {clusters}"):
        density_peaks(plain(1, 5, 3), clusters)


@few
@given(st.data(), st.integers(1, 700), st.integers(1, 4), st.sampled_from(INPUTS))
def test_clusters_partition_the_points(
    data: st.DataObject, count: int, batch: int, given_input: tuple[Maker, torch.dtype]
) -> None:
    make, dtype = given_input
    clusters = data.draw(st.integers(1, count))
    points = make(batch, count, 3).to(dtype)
    centres, cluster = density_peaks(points, clusters)
    for picture in range(batch):
        assert len(set(centres[picture].tolist())) == clusters
        assert cluster[picture, centres[picture]].tolist() == list(range(clusters))
        assert set(cluster[picture].tolist()) == set(range(clusters))
    means = cluster_means(points, cluster, clusters)
    assert bool(means.isfinite().all())
    last = density_peaks(points[-1:], clusters)
    assert torch.equal(last[0][0], centres[-1])
    assert torch.equal(last[1][0], cluster[-1])
