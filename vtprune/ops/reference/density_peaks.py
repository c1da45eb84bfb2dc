"""Plain loops of clustering around density peaks."""

from __future__ import annotations

import math

import torch


def density_peaks(points: torch.Tensor, clusters: int, noise: list[float] | None = None) -> tuple[list[int], list[int]]:
    """Centres and the cluster of every point of `(points, dim)`."""
    count, dim = points.shape
    squared = [[float((one.double() - other.double()).square().sum().float()) for other in points] for one in points]
    density = []
    for point in range(count):
        mean = sum(sorted(squared[point])[:clusters]) / (clusters * dim)
        density.append(math.exp(-mean) + (0.0 if noise is None else noise[point]))
    score = []
    for point in range(count):
        denser = [squared[point][other] for other in range(count) if density[other] > density[point]]
        apart = min(denser) if denser else max(max(row) for row in squared)
        score.append(density[point] * math.sqrt(apart))
    centres = sorted(range(count), key=lambda point: (-score[point], point))[:clusters]
    cluster = [min(range(clusters), key=lambda number: squared[point][centres[number]]) for point in range(count)]
    for number, centre in enumerate(centres):
        cluster[centre] = number
    return centres, cluster


def cluster_means(features: torch.Tensor, cluster: list[int], clusters: int) -> torch.Tensor:
    """Means of the clusters of `(points, dim)`."""
    means = []
    for number in range(clusters):
        members = [point.double() for point, its in zip(features, cluster, strict=True) if its == number]
        means.append(torch.stack(members).mean(0))
    return torch.stack(means)
