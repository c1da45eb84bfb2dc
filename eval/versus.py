"""Two runs of a sweep beside each other: the same method, budget and task in both, question by question."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from vtprune.eval.analysis import Analysis, Entry, Section
from vtprune.eval.paired import Difference, correct, paired_difference
from vtprune.eval.report import words
from vtprune.eval.report.markdown import table as markdown
from vtprune.eval.retained import model_key, task_name

_COLUMNS = ("task", "method", "budget", "A", "B", "B - A [95 %]", "p", "Holm", "tokens A", "tokens B", "changed")


@dataclass(frozen=True)
class Pair:
    """One method at one budget in both runs.

    Args:
        section: Task and model, of the first run.
        first: In the first run.
        second: In the second.
        difference: The second less the first; `None` if single questions have no scores.
        changed: Share of the questions whose score differs.
    """

    section: Section
    first: Entry
    second: Entry
    difference: Difference | None
    changed: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "task": self.section.task,
            "method": self.first.label,
            "budget": self.first.budget,
            "a": self.first.value,
            "b": self.second.value,
            "difference": None if self.difference is None else self.difference.to_dict(),
            "changed": self.changed,
            "average_tokens_a": self.first.average_tokens,
            "average_tokens_b": self.second.average_tokens,
        }


@dataclass(frozen=True)
class Versus:
    """Everything that two runs have in common, and what not.

    Args:
        pairs: In the order of the first run.
        only_first: What the second lacks.
        only_second: What the first lacks.
        notes: Ways in which the runs differ.
    """

    pairs: list[Pair]
    only_first: list[str]
    only_second: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "pairs": [pair.to_dict() for pair in self.pairs],
            "only_a": self.only_first,
            "only_b": self.only_second,
            "notes": self.notes,
        }


def versus(first: Analysis, second: Analysis) -> Versus:
    """Pairs the entries of two runs; p values are corrected over all pairs.

    Models are matched by name and, where each run has but one, whatever their names are: so a model is compared with
    its successor, or a run with one of a newer version.

    Raises:
        ValueError: The runs have nothing in common.
    """
    one_each = all(len({model_key(section) for section in run.sections}) == 1 for run in (first, second))
    known = {key: found for found in _entries(second) for key in [_key(*found, one_each=one_each)]}
    pairs, only_first, used = [], [], set()
    for section, entry in _entries(first):
        key = _key(section, entry, one_each=one_each)
        if key not in known:
            only_first.append(_name(section, entry))
            continue
        used.add(key)
        other = known[key][1]
        shared = [question for question in entry.scores if question in other.scores]
        changed = sum(entry.scores[question] != other.scores[question] for question in shared)
        found = paired_difference(other.scores, entry.scores, section.questions.clusters)
        pairs.append(Pair(section, entry, other, found, changed / len(shared) if shared else None))
    if not pairs:
        raise ValueError(
            f"{first.folders[0]} and {second.folders[0]} have no method, budget and task in common; "
            "compare runs of the same task files, of which at least one cell has finished in both"
        )
    corrected = correct([pair.difference for pair in pairs])
    pairs = [replace(pair, difference=found) for pair, found in zip(pairs, corrected, strict=True)]
    only_second = [_name(*found) for key, found in known.items() if key not in used]
    return Versus(pairs, only_first, only_second, _notes(first, second))


def versus_table(found: Versus, first: str, second: str) -> Table:
    """For people at a terminal."""
    table = Table(title=escape(f"A: {first}\nB: {second}"), box=box.SIMPLE_HEAD, caption=_caption(found))
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _COLUMNS[:3] else "right")
    for pair, cells in zip(found.pairs, _cells(found), strict=True):
        significant = pair.difference is not None and pair.difference.is_significant
        style = None if not significant or pair.difference is None else "green" if pair.difference.mean > 0 else "red"
        table.add_row(*map(escape, cells), style=style)
    return table


def versus_markdown(found: Versus, first: str, second: str) -> str:
    """For documents."""
    parts = [f"A: `{first}`, B: `{second}`", markdown(_COLUMNS, _cells(found)), _caption(found)]
    parts += [f"* {line}" for line in remarks(found)]
    return "\n\n".join(parts) + "\n"


def remarks(found: Versus) -> list[str]:
    """What the table does not show."""
    lines = list(found.notes)
    for run, names in (("A", found.only_first), ("B", found.only_second)):
        if names:
            lines.append(f"only in {run}: {'; '.join(names)}")
    return lines


def _cells(found: Versus) -> Iterator[list[str]]:
    for pair in found.pairs:
        percent = pair.section.percent
        difference = pair.difference
        yield [
            task_name(pair.section),
            pair.first.label,
            pair.first.budget,
            words.number((100 if percent else 1) * pair.first.value),
            words.number((100 if percent else 1) * pair.second.value),
            words.difference(difference, percent=percent),
            words.chance(None if difference is None else difference.p),
            words.chance(None if difference is None else difference.corrected),
            words.number(pair.first.average_tokens),
            words.number(pair.second.average_tokens),
            words.share(pair.changed),
        ]


def _caption(found: Versus) -> str:
    tests = dict.fromkeys(pair.difference.test for pair in found.pairs if pair.difference is not None)
    told = f"p: {', '.join(tests)}, two-sided; Holm: corrected over {len(found.pairs)} pairs; " if tests else ""
    return f"{told}changed: questions whose score differs"


def _entries(run: Analysis) -> Iterator[tuple[Section, Entry]]:
    for section in run.sections:
        for entry in section.entries:
            yield section, entry


def _key(section: Section, entry: Entry, *, one_each: bool) -> tuple[Hashable, ...]:
    record = section.record
    model = None if one_each else section.model
    budget = None if entry.is_full else entry.budget
    return model, section.task, record.get("task_digest"), record.get("limit"), entry.label, budget


def _name(section: Section, entry: Entry) -> str:
    return f"{entry.name} on {section.model_name}, {task_name(section)}"


def _notes(first: Analysis, second: Analysis) -> list[str]:
    lines = []
    for name in ("model", "fingerprint", "dtype", "task_digest", "limit", "seed", "device", "machine", "versions"):
        values = [
            sorted({json.dumps(record.get(name), sort_keys=True, default=str) for record in run.records})
            for run in (first, second)
        ]
        if values[0] != values[1]:
            lines.append(f"{name} differs: A {' | '.join(values[0])}; B {' | '.join(values[1])}")
    return lines
