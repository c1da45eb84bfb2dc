"""Means with their 95 % intervals."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from scipy import stats

from vtprune.eval.statistics import CONFIDENCE, mean_and_error

Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
"""Standard errors that the interval of a normal mean reaches to each side."""


@dataclass(frozen=True)
class Estimate:
    """A mean over questions.

    Args:
        value: The mean.
        low: Lower end of the 95 % interval, `None` if one question or picture is all there is.
        high: Upper end.
        n: Questions.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def estimate(scores: Mapping[Hashable, float], pictures: Mapping[Hashable, Hashable] | None = None) -> Estimate | None:
    """The mean score and its interval, `None` without scores.

    Shares of right answers get Wilson's interval, which has a width even where all are right; other scores, and
    questions of which several are about one picture, Student's.

    Args:
        scores: Score of each question.
        pictures: The picture of each question; all differ if not given.
    """
    if not scores:
        return None
    clusters = [pictures.get(question, question) for question in scores] if pictures else list(scores)
    groups = len(set(clusters))
    values = list(scores.values())
    mean, error = mean_and_error(values, clusters)
    if groups == len(scores) and all(value in (0, 1) for value in values):
        return _wilson(mean, len(values))
    found = from_error(mean, error, groups, len(values))
    if found.low is None or found.high is None or not all(0 <= value <= 1 for value in values):
        return found
    return Estimate(mean, max(0.0, found.low), min(1.0, found.high), len(values))


def from_error(mean: float, error: float | None, groups: int, n: int) -> Estimate:
    """Student's interval of a mean of `groups` independent values with this standard error."""
    half = half_width(error, groups)
    return Estimate(mean, None, None, n) if half is None else Estimate(mean, mean - half, mean + half, n)


def half_width(error: float | None, groups: int) -> float | None:
    """Half of that interval."""
    if error is None or groups < 2:
        return None
    return _t_quantile(groups - 1) * error


def _wilson(share: float, n: int) -> Estimate:
    # scipy has it too, but works out a p value on the way that takes a hundred times as long.
    shrink = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


@functools.cache
def _t_quantile(freedom: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
