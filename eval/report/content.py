"""What a report says, before it becomes a page or a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vtprune.eval.analysis import Analysis, Section
from vtprune.eval.published import Match, matches, unmatched_reason
from vtprune.eval.report.cautions import cautions
from vtprune.eval.report.rows import Row, table_rows
from vtprune.eval.retained import Retained, by_model, retained, task_name
from vtprune.eval.token_need import TokenNeed, token_needs


@dataclass(frozen=True)
class SectionContent:
    """One model on one task.

    Args:
        section: What was measured.
        rows: Its table.
        kinds: Kinds of questions, if there are any.
        needs: How few tokens suffice, for each method.
        published: Published figures that were repeated.
    """

    section: Section
    rows: list[Row]
    kinds: list[str]
    needs: list[TokenNeed]
    published: list[Match]

    @property
    def comparisons(self) -> int:
        """p values that the correction is for."""
        return sum(
            found is not None and found.p is not None for row in self.rows for found in (row.to_full, row.to_random)
        )

    @property
    def tests(self) -> list[str]:
        """Where the p values are from."""
        found = [d.test for row in self.rows for d in (row.to_full, row.to_random) if d is not None]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Content:
    """The whole report.

    Args:
        title: Models and tasks.
        summary: How much was measured, in a sentence.
        cautions: What is missing or amiss.
        sections: One a model and task.
        retained: For each model with several tasks, averages over them.
        environment: Versions, machine, seeds, time and commands.
    """

    title: str
    summary: str
    cautions: list[str]
    sections: list[SectionContent]
    retained: list[list[Retained]]
    environment: list[tuple[str, str]] = field(default_factory=list)


def make_content(analysis: Analysis) -> Content:
    """Works out everything that a report says."""
    sections = [
        SectionContent(
            section,
            table_rows(section),
            list(dict.fromkeys(section.questions.kinds.values())),
            token_needs(section),
            matches(section),
        )
        for section in analysis.sections
        if section.entries
    ]
    averages = [retained(group) for group in by_model([part.section for part in sections])]
    lines = cautions(analysis)
    lines += [
        f"{part.section.model_name}: {reason}." for part in sections if (reason := unmatched_reason(part.section))
    ]
    return Content(
        title=_title(analysis),
        summary=_summary(analysis),
        cautions=lines,
        sections=sections,
        retained=[rows for rows in averages if any(len(row.shares) > 1 for row in rows)],
        environment=environment(analysis.records),
    )


def environment(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the records tell about where and how they were made; several values where they differ."""
    found = []
    for name, title in (
        ("command", "command"),
        ("machine", "machine"),
        ("device", "device"),
        ("dtype", "number type"),
        ("batch_size", "batch size"),
        ("seed", "seeds"),
        ("fingerprint", "weights"),
        ("task_digest", "task files"),
        ("versions", "versions"),
    ):
        values = list(dict.fromkeys(_text(record[name]) for record in records if record.get(name) is not None))
        if values:
            found.append((title, " | ".join(values)))
    times = sorted(str(record["time"]) for record in records if "time" in record)
    if times:
        found.append(("measured", times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"))
    return found


def _text(value: Any) -> str:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def _title(analysis: Analysis) -> str:
    models = list(dict.fromkeys(section.model_name for section in analysis.sections))
    tasks = list(dict.fromkeys(section.task for section in analysis.sections))
    shown = ", ".join(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"
    return f"Visual-token pruning of {', '.join(models)} on {shown}"


def _summary(analysis: Analysis) -> str:
    methods = {entry.label for section in analysis.sections for entry in section.pruned}
    tasks = [task_name(section) for section in analysis.sections]
    questions = sum(int(record["n"]) for record in analysis.records)
    return (
        f"{len(analysis.records)} cells ({len(analysis.failed)} failed), {len(methods)} methods, "
        f"{', '.join(dict.fromkeys(tasks))}; {questions} answers. Intervals are of 95 %; the full model, random, "
        "stride, pool and downsample come first."
    )
