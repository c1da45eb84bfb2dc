"""Two methods on the same questions: how far apart they are, how sure that is, and by which test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from vtprune.eval.intervals import Z, half_width
from vtprune.eval.statistics import CONFIDENCE, holm, mean_and_error

MCNEMAR = "exact McNemar"
PAIRED_T = "paired t"
CLUSTERED_T = "paired t, clustered by picture"


@dataclass(frozen=True)
class Difference:
    """The mean difference of one method's scores from another's.

    Args:
        mean: Positive where the first scores higher.
        low: Lower end of the 95 % interval, `None` if one question or picture is all there is.
        high: Upper end.
        p: Of no difference, two-sided; `None` without an interval.
        test: Where the p value is from.
        n: Questions that both answered.
        corrected: The p value after Holm, over the comparisons of a table.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int
    corrected: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether chance is an unlikely reason, at 5 % and with the correction where there is one."""
        p = self.p if self.corrected is None else self.corrected
        return p is not None and p < 1 - CONFIDENCE

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)


def paired_difference(
    first: Mapping[Hashable, float],
    second: Mapping[Hashable, float],
    pictures: Mapping[Hashable, Hashable] | None = None,
) -> Difference | None:
    """Compares scores question by question.

    Scores of 0 and 1 are compared with McNemar's exact test, others with a paired t test. Where several questions are
    about one picture, their answers may go wrong together, so that the t test takes pictures for its units.

    Args:
        first: Score of each question.
        second: Those of the other method; questions that one of them lacks are left out.
        pictures: The picture of each question; all differ if not given.

    Returns:
        `None` if no question is in both.
    """
    shared = [question for question in first if question in second]
    if not shared:
        return None
    differences = [first[question] - second[question] for question in shared]
    clusters = None if pictures is None else [pictures.get(question, question) for question in shared]
    groups = len(shared) if clusters is None else len(set(clusters))
    binary = all(scores[question] in (0, 1) for scores in (first, second) for question in shared)
    if groups == len(shared):
        return _mcnemar(differences) if binary else _t_test(differences, None, groups)
    found = _t_test(differences, clusters, groups)
    if binary and found.low is not None and found.low == found.high:
        # No picture differs from another, which says less than an interval of no width does.
        low, high = _proportions_interval(differences, groups)
        return dataclasses.replace(found, low=min(low, found.mean), high=max(high, found.mean))
    return found


def correct(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The comparisons of one table with Holm's correction over all of them."""
    tested = [(place, found.p) for place, found in enumerate(differences) if found is not None and found.p is not None]
    corrected = dict(zip([place for place, _ in tested], holm([p for _, p in tested]), strict=True))
    return [
        None if found is None else dataclasses.replace(found, corrected=corrected.get(place))
        for place, found in enumerate(differences)
    ]


def _mcnemar(differences: Sequence[float]) -> Difference:
    wins, losses = _wins_and_losses(differences)
    p = 1.0 if wins + losses == 0 else float(stats.binomtest(wins, wins + losses).pvalue)
    low, high = _proportions_interval(differences, len(differences))
    return Difference((wins - losses) / len(differences), low, high, p, MCNEMAR, len(differences))


def _proportions_interval(differences: Sequence[float], groups: int) -> tuple[float, float]:
    """Bonett and Price (2012): Wald's interval as if one more question were won and one more lost.

    Unlike Wald's own it keeps its promise with few questions, and has a width where no answer differs.
    """
    wins, losses = _wins_and_losses(differences)
    scale = groups / len(differences)
    won, lost = (wins * scale + 1) / (groups + 2), (losses * scale + 1) / (groups + 2)
    half = Z * math.sqrt((won + lost - (won - lost) ** 2) / (groups + 2))
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)


def _wins_and_losses(differences: Sequence[float]) -> tuple[int, int]:
    return sum(value > 0 for value in differences), sum(value < 0 for value in differences)


def _t_test(differences: Sequence[float], clusters: Sequence[Hashable] | None, groups: int) -> Difference:
    mean, error = mean_and_error(differences, clusters)
    test = PAIRED_T if clusters is None else CLUSTERED_T
    half = half_width(error, groups)
    if error is None or half is None:
        return Difference(mean, None, None, None, test, len(differences))
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, test, len(differences))
    p = 2 * float(stats.t.sf(abs(mean / error), groups - 1))
    return Difference(mean, mean - half, mean + half, p, test, len(differences))
