"""Plain loops of the counts of outstanding scores."""

from __future__ import annotations

from collections.abc import Sequence


def iqr_outlier_count(scores: Sequence[float]) -> int:
    """Scores above the third quartile by more than 1.5 times the distance of the quartiles."""
    ranked = sorted(scores)

    def quartile(share: float) -> float:
        rank = share * (len(ranked) - 1)
        below = int(rank)
        above = min(below + 1, len(ranked) - 1)
        return ranked[below] + (ranked[above] - ranked[below]) * (rank - below)

    low, high = quartile(0.25), quartile(0.75)
    return sum(score > high + 1.5 * (high - low) for score in scores)


def local_outlier_factors(values: Sequence[float], neighbours: int) -> list[float]:
    """The factors from the definition, every pair of numbers compared."""
    every = range(len(values))
    if len(values) == 1:
        return [1.0]

    def distance(one: int, other: int) -> float:
        return abs(values[one] - values[other])

    near = []
    for token in every:
        others = [other for other in every if other != token]
        near.append(sorted(others, key=lambda other: (distance(token, other), values[other]))[:neighbours])
    furthest = [distance(token, near[token][-1]) for token in every]
    density = []
    for token in every:
        reach = [max(distance(token, other), furthest[other]) for other in near[token]]
        density.append(1 / (sum(reach) / len(reach) + 1e-10))
    return [sum(density[other] for other in near[token]) / len(near[token]) / density[token] for token in every]
