"""How few tokens each question needs, after the Matryoshka papers: an oracle that chooses a budget for each question.

The gap between it and one budget for all is what a method that adapts to the question could win at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from vtprune.eval.analysis import Entry, Section
from vtprune.eval.vtc import RIGHT


@dataclass(frozen=True)
class Point:
    """Mean visual tokens of a picture, and the share of right answers."""

    tokens: float
    value: float


@dataclass(frozen=True)
class TokenNeed:
    """One method over all its budgets, the full model as the largest.

    Args:
        label: The method.
        budgets: True mean tokens of each budget, ascending.
        needs: For each budget the share of questions for which it is the smallest that gives the right answer.
        never: Share of questions that no budget answers rightly.
        unstable: Share of questions that are right with some budget and wrong with a larger one.
        fixed: One budget for all questions.
        curve: The oracle with the budgets up to each; a question that none of them answers takes the smallest.
        stable: An oracle that trusts a budget only if all larger ones are right too, so that fewer guesses count.
    """

    label: str
    budgets: tuple[float, ...]
    needs: tuple[float, ...]
    never: float
    unstable: float
    fixed: tuple[Point, ...]
    curve: tuple[Point, ...]
    stable: Point

    @property
    def oracle(self) -> Point:
        """With all budgets."""
        return self.curve[-1]

    @property
    def fixed_value(self) -> float:
        """Right answers of fixed budgets of the oracle's cost; where none costs just that, two are mixed at random."""
        return _at(self.fixed, self.oracle.tokens)

    @property
    def gap(self) -> float:
        """What the oracle wins over fixed budgets of its cost."""
        return self.oracle.value - self.fixed_value

    @property
    def tokens_like_full(self) -> float | None:
        """Mean tokens with which the oracle is as often right as the full model."""
        target = self.fixed[-1].value
        before = None
        for point in self.curve:
            if point.value >= target:
                if before is None:
                    return point.tokens
                share = (target - before.value) / (point.value - before.value)
                return before.tokens + share * (point.tokens - before.tokens)
            before = point
        return None


def token_needs(section: Section) -> list[TokenNeed]:
    """Every method with two budgets or more that scored single questions."""
    found = []
    for label in section.labels:
        entries = [entry for entry in section.pruned if entry.label == label and entry.scores]
        if len(entries) > 1:
            full = section.full if section.full is not None and section.full.scores else None
            found.append(_need(label, sorted(entries, key=lambda entry: entry.average_tokens), full))
    return found


def _need(label: str, entries: Sequence[Entry], full: Entry | None) -> TokenNeed:
    """A method that draws is looked at seed by seed: over their mean, an oracle would see which tokens are lucky."""
    last = [] if full is None else [full]
    seeds = sorted(set.intersection(*(set(entry.seeds) for entry in entries)))
    if not entries[0].draws or not seeds:
        return need_of(label, [(entry.average_tokens, entry.scores) for entry in (*entries, *last)])
    of_seeds = []
    for seed in seeds:
        steps: list[tuple[float, Mapping[Hashable, float]]] = []
        for entry in entries:
            run = entry.runs[entry.seeds.index(seed)]
            steps.append((float(run.record["average_tokens"]), run.scores))
        of_seeds.append(need_of(label, [*steps, *((entry.average_tokens, entry.scores) for entry in last)]))
    return _mean(of_seeds)


def need_of(label: str, steps: Sequence[tuple[float, Mapping[Hashable, float]]]) -> TokenNeed:
    """The analysis of budgets in ascending order.

    Args:
        label: The method.
        steps: For each budget its tokens and the score of each question; what one of them lacks is left out.

    Raises:
        ValueError: No question that all budgets were asked.
    """
    shared = [question for question in steps[0][1] if all(question in scores for _, scores in steps)]
    if not shared:
        raise ValueError(f"{label}: no question was asked with every budget")
    tokens = [count for count, _ in steps]
    right = [[scores[question] >= RIGHT for _, scores in steps] for question in shared]
    total = len(shared)
    first = [answers.index(True) if True in answers else None for answers in right]
    curve = []
    for cap in range(len(steps)):
        within = [place for place in first if place is not None and place <= cap]
        spent = sum(tokens[place] for place in within) + (total - len(within)) * tokens[0]
        curve.append(Point(spent / total, len(within) / total))
    stable = [_stable(answers) for answers in right]
    return TokenNeed(
        label,
        tuple(tokens),
        tuple(first.count(place) / total for place in range(len(steps))),
        first.count(None) / total,
        sum(True in answers and not all(answers[answers.index(True) :]) for answers in right) / total,
        tuple(Point(count, sum(answers[place] for answers in right) / total) for place, count in enumerate(tokens)),
        tuple(curve),
        Point(
            sum(tokens[0 if place is None else place] for place in stable) / total,
            sum(place is not None for place in stable) / total,
        ),
    )


def _stable(answers: Sequence[bool]) -> int | None:
    """The smallest budget from which on all answers are right."""
    if not answers[-1]:
        return None
    wrong = [place for place, is_right in enumerate(answers) if not is_right]
    return wrong[-1] + 1 if wrong else 0


def _at(points: Sequence[Point], tokens: float) -> float:
    """Value on the line through the points; outside them, that of the nearest."""
    if tokens <= points[0].tokens:
        return points[0].value
    for left, right in itertools.pairwise(points):
        if left.tokens <= tokens <= right.tokens and right.tokens > left.tokens:
            return left.value + (right.value - left.value) * (tokens - left.tokens) / (right.tokens - left.tokens)
    return points[-1].value


def _mean(needs: Sequence[TokenNeed]) -> TokenNeed:
    def numbers(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(sum(column) / len(column) for column in zip(*rows, strict=True))

    def points(rows: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
        tokens = numbers([[point.tokens for point in row] for row in rows])
        values = numbers([[point.value for point in row] for row in rows])
        return tuple(Point(*pair) for pair in zip(tokens, values, strict=True))

    return TokenNeed(
        needs[0].label,
        numbers([need.budgets for need in needs]),
        numbers([need.needs for need in needs]),
        sum(need.never for need in needs) / len(needs),
        sum(need.unstable for need in needs) / len(needs),
        points([need.fixed for need in needs]),
        points([need.curve for need in needs]),
        points([[need.stable] for need in needs])[0],
    )
