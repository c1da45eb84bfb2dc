"""Clustering around density peaks."""

from __future__ import annotations

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gather import take
from vtprune.ops.merge import group_means
from vtprune.ops.topk import stable_topk


@torch.no_grad()
def density_peaks(
    points: torch.Tensor, clusters: int, *, noise: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds points that are dense and far from anything denser, and sends every point to the nearest of them.

    As SparseVLM (arXiv 2410.04417) clusters: with `d` the Euclidean distance over `sqrt(dim)`, density is
    `exp(-mean of the smallest d ** 2)` over as many neighbours as there are clusters, the point itself among them;
    a point's distance is that to the nearest strictly denser point, or the largest of all where none is denser;
    centres have the highest product of both.

    Distances are taken from differences in float64 (by kernels, of half precision, in float32) and their squares
    rounded to float32, whose sums are then as good as exact: duplicates are at distance 0, and equal densities are
    equal.

    Args:
        points: `(batch, points, dim)`.
        clusters: Centres to find, 1 to `points`.
        noise: Added to the densities, `(batch, points)`.

    Returns:
        The centres, best first, `(batch, clusters)`, and the cluster of every point, `(batch, points)`.

    Raises:
        ValueError: `clusters` is out of range.

    Example:
        >>> points = torch.tensor([[[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]])
        >>> centres, cluster = density_peaks(points, 3)
        >>> centres.tolist(), cluster.tolist()
        ([[1, 4, 0]], [[2, 0, 0, 1, 1, 1]])
    """
    count, dim = points.shape[1:]
    check_keep(clusters, count)
    if use_kernels(points):
        from vtprune.kernels.density_peaks import MOST_POINTS

        if count <= MOST_POINTS:
            return _with_kernels(points, clusters, noise)
    squared = _squared_distances(points).double()
    nearest = squared.topk(clusters, dim=2, largest=False).values.sum(dim=2)
    density = (-nearest / (clusters * dim)).exp()
    if noise is not None:
        density = density + noise
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    apart = squared.masked_fill(~denser, torch.inf).amin(dim=2)
    apart = torch.where(denser.any(dim=2), apart, squared.amax(dim=(1, 2)).unsqueeze(1))
    centres = stable_topk(density * apart.sqrt(), clusters)
    cluster = take(squared, centres).argmin(dim=1)
    # A duplicate of an earlier centre stays the centre of its own cluster, so that none is empty.
    own = torch.arange(clusters, device=points.device).expand(len(points), -1)
    return centres, cluster.scatter(1, centres, own)


def cluster_means(features: torch.Tensor, cluster: torch.Tensor, clusters: int) -> torch.Tensor:
    """The mean of each cluster's points, `(batch, clusters, dim)` in the dtype of `features`; no cluster is empty.

    Args:
        features: `(batch, points, dim)`.
        cluster: The cluster of each point, `(batch, points)`.
        clusters: How many there are.

    Example:
        >>> cluster_means(torch.tensor([[[1.0], [5.0], [3.0]]]), torch.tensor([[1, 0, 1]]), 2).flatten().tolist()
        [5.0, 2.0]
    """
    return group_means(features, cluster, clusters)[0]


def _squared_distances(points: torch.Tensor) -> torch.Tensor:
    exact = points.double()
    if points.device.type == "cpu":
        # Each pair once, and of one picture after another.
        count = points.shape[1]
        first, second = torch.triu_indices(count, count, offset=1)
        squared = torch.zeros(len(points), count, count, dtype=torch.float32)
        for square, picture in zip(squared, exact, strict=True):
            square[first, second] = square[second, first] = torch.pdist(picture).square().float()
        return squared
    return torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist").square().float()


def _with_kernels(points: torch.Tensor, clusters: int, noise: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    from vtprune.kernels.density_peaks import peaks, squared_distances

    squared = squared_distances(points) if points.element_size() == 2 else _squared_distances(points)
    return peaks(squared, clusters, points.shape[-1], noise)
