from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from regressions import clustered_mean
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from vtprune.eval.paired import CLUSTERED_T, MCNEMAR, PAIRED_T, Difference, correct, paired_difference

Scores = dict[Hashable, float]


def binary(both: int, only_first: int, only_second: int, neither: int) -> tuple[Scores, Scores]:
    """Scores of two methods with these counts of right answers."""
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * only_first + [(0.0, 1.0)] * only_second + [(0.0, 0.0)] * neither
    return {q: first for q, (first, _) in enumerate(pairs)}, {q: second for q, (_, second) in enumerate(pairs)}


def compared(first: Scores, second: Scores, pictures: dict[Hashable, Hashable] | None = None) -> Difference:
    found = paired_difference(first, second, pictures)
    assert found is not None
    return found


@pytest.mark.parametrize("counts", [(30, 2, 11, 5), (0, 7, 7, 0), (50, 0, 1, 0), (5, 21, 3, 40)])
def test_right_and_wrong_by_mcnemar(counts: tuple[int, int, int, int]) -> None:
    both, only_first, only_second, neither = counts
    found = compared(*binary(*counts))
    assert (found.test, found.n) == (MCNEMAR, sum(counts))
    assert found.mean == pytest.approx((only_first - only_second) / sum(counts))
    expected = mcnemar([[both, only_first], [only_second, neither]], exact=True)
    assert found.p == pytest.approx(float(expected.pvalue))


def test_interval_of_paired_shares() -> None:
    """The airways of 21 children before and after a transplantation, as in Fagerland, Lydersen and Laake (2014)."""
    found = compared(*binary(1, 1, 7, 12))
    assert (found.low, found.high) == pytest.approx((-0.508, -0.013), abs=1e-3)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    held = 0
    for _ in range(600):
        kinds = rng.choices(["both", "first", "second", "neither"], [0.7, 0.05, 0.15, 0.1], k=40)
        found = compared(*binary(*(kinds.count(kind) for kind in ("both", "first", "second", "neither"))))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= -0.1 <= found.high
    assert 0.93 <= held / 600 <= 0.995


def test_no_answer_differs() -> None:
    found = compared(*binary(20, 0, 0, 5))
    assert (found.mean, found.p) == (0, 1)
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.05
    assert found.high > 0.05
    assert not found.is_significant


def test_parts_of_points_by_t() -> None:
    rng = random.Random(1)
    first: Scores = {q: rng.choice([0.0, 0.3, 0.6, 1.0]) for q in range(25)}
    second: Scores = {q: max(0.0, first[q] - rng.random()) for q in range(25)}
    found = compared(first, second)
    expected = stats.ttest_rel([first[q] for q in range(25)], [second[q] for q in range(25)])
    interval = expected.confidence_interval(0.95)
    assert found.test == PAIRED_T
    assert found.p == pytest.approx(float(expected.pvalue))
    assert (found.low, found.high) == pytest.approx((float(interval.low), float(interval.high)))
    assert found.is_significant


def test_questions_about_one_picture_count_together() -> None:
    rng = random.Random(2)
    pictures: dict[Hashable, Hashable] = {q: q // 5 for q in range(100)}
    fails = [rng.random() < 0.3 for _ in range(20)]
    first: Scores = dict.fromkeys(range(100), 1.0)
    second: Scores = {q: float(not fails[q // 5] or rng.random() < 0.2) for q in range(100)}
    found = compared(first, second, pictures)
    expected = clustered_mean([first[q] - second[q] for q in range(100)], [q // 5 for q in range(100)])
    assert found.test == CLUSTERED_T
    assert (found.mean, found.p) == pytest.approx((expected.mean, expected.p))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    alone = compared(first, second)
    assert alone.p is not None
    assert found.p is not None
    assert found.p > 100 * alone.p


def test_pictures_that_all_differ_change_nothing() -> None:
    scores = binary(30, 2, 11, 5)
    assert compared(*scores, {q: f"picture {q}" for q in range(48)}) == compared(*scores)


def test_no_answer_differs_in_pictures() -> None:
    found = compared(*binary(20, 0, 0, 0), {q: q // 4 for q in range(20)})
    assert (found.mean, found.p, found.test) == (0, 1, CLUSTERED_T)
    assert found.high is not None
    assert found.high > 0.2  # five pictures do not tell more


def test_only_shared_questions_count() -> None:
    found = compared({1: 1.0, 2: 0.0, 3: 1.0}, {2: 0.0, 3: 0.0, 4: 1.0})
    assert (found.n, found.mean) == (2, 0.5)
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_one_picture_allows_no_test() -> None:
    found = compared(*binary(3, 1, 0, 0), dict.fromkeys(range(4), "the same"))
    assert (found.mean, found.low, found.p) == (0.25, None, None)
    assert not found.is_significant


def test_correction_over_a_table() -> None:
    strong, weak = compared(*binary(30, 0, 12, 0)), compared(*binary(30, 1, 8, 0))
    untested = Difference(0.5, None, None, None, PAIRED_T, 1)
    found = correct([weak, None, untested, strong])
    assert found[1] is None
    assert [None if f is None else f.corrected for f in found] == [
        pytest.approx(weak.p),
        None,
        None,
        pytest.approx(2 * (strong.p or 0)),
    ]
    assert weak.is_significant
    many = correct([weak] * 3)[0]
    assert many is not None
    assert not many.is_significant
