from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pytest
from made_results import TOKENS, make_results

from vtprune.eval.analysis import read_folder
from vtprune.eval.token_need import Point, TokenNeed, need_of, token_needs

ANSWERS: dict[str, tuple[int, ...]] = {
    "always": (1, 1, 1),
    "from the middle": (0, 1, 1),
    "with all": (0, 0, 1),
    "by luck": (1, 0, 1),
    "never": (0, 0, 0),
}


def need(answers: dict[str, tuple[int, ...]] = ANSWERS) -> TokenNeed:
    tokens = (10, 20, 100)
    steps: list[tuple[float, dict[Hashable, float]]] = [
        (count, {question: float(row[place]) for question, row in answers.items()})
        for place, count in enumerate(tokens)
    ]
    return need_of("method", steps)


def test_smallest_budget_of_each_question() -> None:
    found = need()
    assert found.needs == (0.4, 0.2, 0.2)
    assert found.never == pytest.approx(0.2)
    assert found.unstable == pytest.approx(0.2)
    assert found.fixed == (Point(10, 0.4), Point(20, 0.4), Point(100, 0.8))


def test_oracle_spends_the_fewest_tokens() -> None:
    found = need()
    # What no budget up to a limit answers takes the smallest: it is lost anyway.
    assert found.curve == (Point(10, 0.4), Point((10 + 20 + 10 + 10 + 10) / 5, 0.6), Point(150 / 5, 0.8))
    assert found.oracle == Point(30, 0.8)
    assert found.stable == Point((10 + 20 + 100 + 100 + 10) / 5, 0.8)


def test_gap_to_fixed_budgets_of_the_same_cost() -> None:
    found = need()
    assert found.fixed_value == pytest.approx(0.4 + 0.4 * (30 - 20) / (100 - 20))
    assert found.gap == pytest.approx(0.35)
    assert found.tokens_like_full == pytest.approx(30)


def test_oracle_that_beats_the_full_model_at_once() -> None:
    found = need({"a": (1, 1, 0), "b": (1, 0, 1)})
    assert found.tokens_like_full == 10
    assert (found.oracle, found.gap) == (Point(10, 1.0), 0)


def test_no_shared_question() -> None:
    with pytest.raises(ValueError, match="method: no question was asked with every budget"):
        need_of("method", [(1, {1: 1.0}), (2, {2: 1.0})])


def test_from_a_folder(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride", "divprune"), (64, 32), questions=30)
    found = token_needs(read_folder(tmp_path).sections[0])
    assert [(need.label, need.budgets) for need in found] == [
        ("stride", (32, 64, TOKENS)),
        ("divprune", (32, 64, TOKENS)),
    ]
    assert all(need.oracle.value == 1 for need in found)


def test_an_oracle_does_not_choose_among_seeds(tmp_path: Path) -> None:
    """Seeds that fail on different questions are three oracles, not one that fails nowhere."""

    def score(label: str, tokens: float, seed: int, question: int) -> float:
        return float(question % 3 != seed or tokens == TOKENS)

    make_results(tmp_path, ("random",), (64, 32), seeds=(0, 1, 2), score=score, questions=30)
    (found,) = token_needs(read_folder(tmp_path).sections[0])
    assert found.needs == pytest.approx((2 / 3, 0, 1 / 3))
    assert (found.fixed[0].tokens, found.fixed[0].value) == pytest.approx((32, 2 / 3))


def test_one_budget_is_no_choice(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride",), (64,))
    assert token_needs(read_folder(tmp_path).sections[0]) == []
