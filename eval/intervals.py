"""Means with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from scipy import stats

from vtprune.eval.statistics import CONFIDENCE, mean_and_error


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
        low, high = stats.binomtest(round(sum(values)), len(values)).proportion_ci(CONFIDENCE, method="wilson")
        return Estimate(mean, float(low), float(high), len(values))
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
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * error
