"""Geometric token counts by trial of every number."""

from __future__ import annotations

from fractions import Fraction


def geometric_counts(tokens: int, keep: int, steps: int) -> list[int]:
    """For each step the highest count whose share of `tokens`, to the power of `steps`, fits the decay."""
    decay = Fraction(min(keep, tokens), tokens)
    counts = []
    for step in range(1, steps + 1):
        fitting = [count for count in range(1, tokens + 1) if Fraction(count, tokens) ** steps <= decay**step]
        counts.append(max(fitting))
    return counts
