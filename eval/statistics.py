"""Uncertainty of measured scores."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, which one value alone does not have.

    Example:
        >>> mean_and_error([0.0, 1.0, 1.0, 0.0])
        (0.5, 0.28867513459481287)
    """
    if not values:
        raise ValueError("no values to average")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
