"""Density peaks by kernels equal those of the torch code, ties and duplicates included."""

from __future__ import annotations

import pytest
import torch
from awkward import tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import without_kernels
from vtprune.kernels.density_peaks import peaks, squared_distances
from vtprune.ops.density_peaks import _squared_distances, _with_kernels, density_peaks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def by_torch(points: torch.Tensor, clusters: int, noise: torch.Tensor | None = None) -> list[torch.Tensor]:
    with without_kernels():
        return [*density_peaks(points, clusters, noise=noise)]


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (63, 300), (70, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_distances(count: int, dim: int, dtype: torch.dtype) -> None:
    points = tokens_of("strided", 2, count, dim).to(dtype).to(DEVICE)
    points[:, -1] = points[:, 0]
    found = squared_distances(points)
    torch.testing.assert_close(found, _squared_distances(points), rtol=1e-5, atol=0)
    assert torch.equal(found, found.mT)
    assert not found[:, 0, -1].any()


@pytest.mark.parametrize("kind", ["signs", "with_zeros", "constant"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (63, 9), (40, 40)])
def test_ties_are_broken_alike(kind: str, dtype: torch.dtype, count: int, clusters: int) -> None:
    points = tokens_of(kind, 2, count, 16).to(dtype).to(DEVICE)
    assert all(map(torch.equal, _with_kernels(points, clusters, None), by_torch(points, clusters)))


@settings(max_examples=12)
@given(st.integers(1, 40), st.booleans(), st.data())
def test_any_points(count: int, noisy: bool, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, count))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    points = torch.randint(-2, 3, (2, count, 4)).bfloat16().to(DEVICE)
    noise = torch.randint(0, 3, (2, count)).float().mul(0.25).to(DEVICE) if noisy else None
    found = _with_kernels(points, clusters, noise)
    assert all(map(torch.equal, found, by_torch(points, clusters, noise)))


def test_batch_mates_do_not_matter() -> None:
    points = torch.randn(3, 50, 20, device=DEVICE).bfloat16()
    together = _with_kernels(points, 5, None)
    alone = _with_kernels(points[1:2], 5, None)
    assert all(torch.equal(one[0], all_of_them[1]) for one, all_of_them in zip(alone, together, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "dim", "clusters"), [(150, 4096, 20), (1000, 512, 60), (3000, 64, 200)])
def test_on_a_device(count: int, dim: int, clusters: int) -> None:
    points = torch.randn(4, count, dim, device="cuda").bfloat16()
    torch.testing.assert_close(squared_distances(points), _squared_distances(points), rtol=1e-5, atol=0)
    # From the same distances, the same clusters.
    squared = _squared_distances(points)
    assert all(map(torch.equal, peaks(squared, clusters, dim, None), by_torch(points, clusters)))
    whole = torch.randint(-2, 3, points.shape, device="cuda").bfloat16()
    assert all(map(torch.equal, density_peaks(whole, clusters), by_torch(whole, clusters)))
