"""Plain loop of positions without gaps."""

from __future__ import annotations

from collections.abc import Sequence


def closed_positions(positions: Sequence[Sequence[int]], left: Sequence[bool]) -> list[list[int]]:
    """Positions of one sequence, a list for each number that tokens have, after the unused numbers are gone.

    Returns:
        As `positions`; those of removed tokens mean nothing.
    """
    had = {number for axis in positions for number in axis}
    used = {number for axis in positions for number, stays in zip(axis, left, strict=True) if stays}
    return [[number - sum(gone < number for gone in had - used) for number in axis] for axis in positions]
