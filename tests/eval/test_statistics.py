from __future__ import annotations

import math
import random
import re
from collections.abc import Hashable

import pytest
from regressions import clustered_mean
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vtprune.eval.intervals import estimate, from_error
from vtprune.eval.statistics import holm, mean_and_error, spread


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)


def test_error_of_a_mean(rng: random.Random) -> None:
    values = [rng.gauss(3, 2) for _ in range(37)]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(sum(values) / 37)
    assert error == pytest.approx(float(stats.sem(values)))
    assert mean_and_error(values, range(37))[1] == pytest.approx(error)


def test_clustered_error_is_that_of_a_regression(rng: random.Random) -> None:
    pictures = [place // 3 for place in range(60)]
    shared = [rng.gauss(0, 1) for _ in range(20)]
    values = [shared[picture] + rng.gauss(0, 0.5) for picture in pictures]
    mean, error = mean_and_error(values, pictures)
    expected = clustered_mean(values, pictures)
    assert (mean, error) == pytest.approx((expected.mean, expected.error))
    plain = mean_and_error(values)[1]
    assert error is not None
    assert plain is not None
    assert error > 1.3 * plain


def test_one_value_or_cluster_has_no_error() -> None:
    assert mean_and_error([2.0]) == (2.0, None)
    assert mean_and_error([2.0, 4.0], ["a", "a"]) == (3.0, None)
    assert spread([2.0]) is None


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_and_error([])
    with pytest.raises(ValueError, match="2 values need as many clusters, got 1"):
        mean_and_error([1.0, 2.0], ["a"])


def test_spread(rng: random.Random) -> None:
    values = [rng.random() for _ in range(5)]
    assert spread(values) == pytest.approx(float(stats.tstd(values)))


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_holm(rng: random.Random, count: int) -> None:
    p_values = [rng.random() ** 4 for _ in range(count)]
    p_values[-1] = p_values[0]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_holm_of_nothing() -> None:
    assert holm([]) == []


@pytest.mark.parametrize(("right", "n"), [(0, 12), (7, 12), (12, 12)])
def test_interval_of_a_share(right: int, n: int) -> None:
    found = estimate({question: float(question < right) for question in range(n)})
    assert found is not None
    assert (found.value, found.n) == (right / n, n)
    assert (found.low, found.high) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-9)


def test_interval_of_other_scores(rng: random.Random) -> None:
    values = [rng.gauss(5, 3) for _ in range(14)]
    found = estimate(dict(enumerate(values)))
    assert found is not None
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((float(expected.low), float(expected.high)))


def test_interval_of_clusters(rng: random.Random) -> None:
    """Wilson's interval would be half as wide."""
    pictures: dict[Hashable, Hashable] = {question: question // 4 for question in range(80)}
    right: dict[Hashable, bool] = {picture: rng.random() < 0.5 for picture in range(20)}
    scores: dict[Hashable, float] = {question: float(right[picture]) for question, picture in pictures.items()}
    found = estimate(scores, pictures)
    plain = estimate(scores)
    assert found is not None
    assert plain is not None
    expected = clustered_mean(list(scores.values()), [question // 4 for question in range(80)])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert width(found) > 1.8 * width(plain)


def test_shares_stay_between_nothing_and_all() -> None:
    found = estimate({0: 1.0, 1: 1.0, 2: 1.0, 3: 0.9})
    assert found is not None
    assert found.high == 1.0
    assert found.low is not None
    assert 0.89 < found.low < 0.93
    assert from_error(0.99, 0.02, 30, 30).high == pytest.approx(0.99 + 0.02 * float(stats.t.ppf(0.975, 29)))


def test_nothing_to_estimate() -> None:
    assert estimate({}) is None
    one = estimate({0: 3.5})
    assert one is not None
    assert (one.value, one.low, one.high) == (3.5, None, None)


def width(found: object) -> float:
    low, high = re.findall(r"(?:low|high)=([\d.]+)", str(found))
    return math.fabs(float(high) - float(low))
