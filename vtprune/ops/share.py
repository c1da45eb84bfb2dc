"""Sharing a budget among parts of different size."""

from __future__ import annotations

from collections.abc import Sequence

from vtprune.ops.checks import check_keep


def largest_remainder(sizes: Sequence[int], total: int) -> tuple[int, ...]:
    """Splits `total` in proportion to `sizes`; what rounding down leaves goes to the largest remainders.

    Every part is at most its size, and the parts add up to `total`. Ties go to the earlier part.

    Raises:
        ValueError: `total` is negative or above the sum of the sizes.

    Example:
        >>> largest_remainder([576, 576, 144], 100)
        (45, 44, 11)
    """
    whole = sum(sizes)
    check_keep(total, whole, lowest=0)
    if whole == 0:
        return (0,) * len(sizes)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda part: -(total * sizes[part] % whole))
    for part in by_remainder[: total - sum(shares)]:
        shares[part] += 1
    return tuple(shares)
