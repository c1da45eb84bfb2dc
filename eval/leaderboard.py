"""Many sweeps in one ranking: what is left of each model's full score, at each budget and over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from vtprune.eval.analysis import Analysis
from vtprune.eval.grid import BASELINES
from vtprune.eval.report import words
from vtprune.eval.report.markdown import table as markdown
from vtprune.eval.retained import Retained, by_model, retained

RANDOM = BASELINES[0]
_OVERALL = ("method", "tables", "mean rank", "retained over random", "below random in", "costs more than named in")


@dataclass(frozen=True)
class Standing:
    """A method among those of one budget.

    Args:
        rank: 1 for the most retained; `None` if not all tasks were run.
        row: What is left of the full model's scores.
        over_random: Retained share less that of random tokens at this budget, on the tasks that both ran.
        extra: True mean tokens as a share of those of random tokens at this budget, less 1.
    """

    rank: int | None
    row: Retained
    over_random: float | None
    extra: float | None

    @property
    def remarks(self) -> str:
        """What a reader must know before quoting the rank."""
        found = []
        if self.row.is_baseline:
            found.append("baseline")
        if self.over_random is not None and self.over_random < 0:
            found.append("below random")
        if self.costs_more:
            found.append(f"processes {1 + (self.extra or 0):.1f} x the tokens")
        if self.rank is None:
            found.append("not all tasks")
        return ", ".join(found)

    @property
    def costs_more(self) -> bool:
        """Whether it processes clearly more tokens than the budget's name says."""
        return self.extra is not None and self.extra > 0.1


@dataclass(frozen=True)
class Ranking:
    """One model at one budget.

    Args:
        model: Name of the model.
        budget: The budget in words.
        tasks: What was run.
        standings: Best first.
    """

    model: str
    budget: str
    tasks: list[str]
    standings: list[Standing]


@dataclass(frozen=True)
class Overall:
    """A method over all rankings in which it has a rank."""

    label: str
    tables: int
    mean_rank: float
    over_random: float | None
    below_random: int
    costs_more: int


def rankings(analysis: Analysis) -> list[Ranking]:
    """One for each model and budget, in the order of the results."""
    found = []
    for sections in by_model(analysis.sections):
        rows = retained(sections)
        for budget in dict.fromkeys(row.budget for row in rows):
            of_budget = [row for row in rows if row.budget == budget]
            tasks = list(dict.fromkeys(task for row in of_budget for task in row.shares))
            found.append(Ranking(sections[0].model_name, budget, tasks, _standings(of_budget, tasks)))
    return found


def overall(found: Sequence[Ranking]) -> list[Overall]:
    """Methods by what they retain over random tokens, where that is known, else by their ranks."""
    places: dict[str, list[Standing]] = {}
    for ranking in found:
        for standing in ranking.standings:
            if standing.rank is not None:
                places.setdefault(standing.row.label, []).append(standing)
    rows = []
    for label, standings in places.items():
        ranks = [standing.rank for standing in standings if standing.rank is not None]
        over = [standing.over_random for standing in standings if standing.over_random is not None]
        rows.append(
            Overall(
                label,
                len(standings),
                sum(ranks) / len(ranks),
                sum(over) / len(over) if over else None,
                sum(value < 0 for value in over),
                sum(standing.costs_more for standing in standings),
            )
        )
    return sorted(rows, key=lambda row: (-(row.over_random if row.over_random is not None else -1), row.mean_rank))


def to_data(found: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Plain data, for JSON."""
    return [
        {
            "model": ranking.model,
            "budget": ranking.budget,
            "tasks": ranking.tasks,
            "methods": [
                {
                    "rank": standing.rank,
                    "method": standing.row.label,
                    "baseline": standing.row.is_baseline,
                    "retained": standing.row.average,
                    "by_task": standing.row.shares,
                    "average_tokens": standing.row.average_tokens,
                    "over_random": standing.over_random,
                }
                for standing in ranking.standings
            ],
        }
        for ranking in found
    ]


def to_tables(found: Sequence[Ranking]) -> list[Table]:
    """For people at a terminal."""
    tables = []
    for title, head, lines in _sheets(found):
        table = Table(title=escape(title), box=box.SIMPLE_HEAD)
        for column in head:
            table.add_column(column, justify="left" if column in ("method", "remarks") else "right")
        for line in lines:
            table.add_row(*map(escape, line))
        tables.append(table)
    return tables


def to_markdown(found: Sequence[Ranking]) -> str:
    """For documents."""
    parts = ["# Leaderboard"]
    for title, head, lines in _sheets(found):
        parts += [f"## {title}", markdown(head, lines)]
    return "\n\n".join(parts) + "\n"


def _sheets(found: Sequence[Ranking]) -> list[tuple[str, list[str], list[list[str]]]]:
    sheets = [
        (
            f"{ranking.model}, {ranking.budget}: share of the full model's score",
            ["rank", "method", "average", *ranking.tasks, "over random", "tokens, true", "remarks"],
            [_line(standing, ranking.tasks) for standing in ranking.standings],
        )
        for ranking in found
    ]
    if len(found) > 1:
        sheets.append((f"All {len(found)} tables", list(_OVERALL), [_overall_line(row) for row in overall(found)]))
    return sheets


def _line(standing: Standing, tasks: Sequence[str]) -> list[str]:
    row = standing.row
    return [
        words.NOTHING if standing.rank is None else str(standing.rank),
        row.label,
        words.share(row.average),
        *(words.share(row.shares.get(task)) for task in tasks),
        words.NOTHING if standing.over_random is None else f"{100 * standing.over_random:+.1f}",
        words.number(row.average_tokens),
        standing.remarks,
    ]


def _overall_line(row: Overall) -> list[str]:
    return [
        row.label,
        str(row.tables),
        words.number(row.mean_rank),
        words.NOTHING if row.over_random is None else f"{100 * row.over_random:+.1f}",
        str(row.below_random),
        str(row.costs_more),
    ]


def _standings(rows: Sequence[Retained], tasks: Sequence[str]) -> list[Standing]:
    random = next((row for row in rows if next(iter(row.entries.values())).pruner == RANDOM), None)
    complete = sorted((row for row in rows if len(row.shares) == len(tasks)), key=lambda row: -row.average)
    partial = [row for row in rows if len(row.shares) < len(tasks)]
    ranks = {row.label: 1 + sum(other.average > row.average for other in complete) for row in complete}
    return [
        Standing(ranks.get(row.label), row, _over(row, random), _extra(row, random)) for row in (*complete, *partial)
    ]


def _over(row: Retained, random: Retained | None) -> float | None:
    if random is None or random is row:
        return None
    shared = [task for task in row.shares if task in random.shares]
    return sum(row.shares[task] - random.shares[task] for task in shared) / len(shared) if shared else None


def _extra(row: Retained, random: Retained | None) -> float | None:
    return None if random is None or not random.average_tokens else row.average_tokens / random.average_tokens - 1
