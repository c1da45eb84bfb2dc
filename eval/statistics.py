"""Uncertainty of measured scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

CONFIDENCE = 0.95
"""Of every interval that is told."""


def mean_and_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float, float | None]:
    """The mean and its standard error, which one value (or one cluster) alone does not have.

    Args:
        values: One a question.
        clusters: For each value what it shares with others, such as its picture; values of one cluster may depend on
            each other in any way.

    Raises:
        ValueError: No values, or not one cluster for each.

    Example:
        >>> mean_and_error([0.0, 1.0, 1.0, 0.0])
        (0.5, 0.28867513459481287)
        >>> mean_and_error([0.0, 1.0, 1.0, 0.0], ["a", "b", "b", "a"])
        (0.5, 0.5)
    """
    if not values:
        raise ValueError("no values to average")
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(values)} values need as many clusters, got {len(clusters)}")
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = {}
    for place, value in enumerate(values):
        cluster = place if clusters is None else clusters[place]
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    groups = len(sums)
    if groups == 1:
        return mean, None
    squares = math.fsum(total**2 for total in sums.values())
    return mean, math.sqrt(squares * groups / (groups - 1)) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of several runs, `None` for one.

    Example:
        >>> spread([0.2, 0.4])
        0.14142135623730953
    """
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, after Holm: the chance of one false finding among all stays what it was.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
