"""The report as Markdown, for papers and pull requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vtprune.eval.analysis import Section
from vtprune.eval.report import words
from vtprune.eval.report.content import Content, SectionContent
from vtprune.eval.report.sheet import MATCH_COLUMNS, NEED_COLUMNS, NEED_MEANING, filled, match_cells, need_cells
from vtprune.eval.retained import Retained, task_name
from vtprune.method_docs import markdown_table


def to_markdown(content: Content) -> str:
    """The whole report but for pictures and plots."""
    parts = [f"# {content.title}", content.summary]
    if content.cautions:
        parts.append("\n".join(["**Read this first:**", "", *(f"* {line}" for line in content.cautions)]))
    for table in content.retained:
        parts += ["## Retained, average over tasks", retained_table(table)]
    for part in content.sections:
        parts += _section(part)
    parts.append("## Environment")
    parts.append("\n".join(f"* {name}: {value}" for name, value in content.environment))
    return "\n\n".join(part for part in parts if part) + "\n"


def retained_table(rows: Sequence[Retained]) -> str:
    """Shares of the full model's values by task and on average; a dash where a task was not measured."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.shares))
    lines = [
        [
            row.label,
            row.budget,
            words.number(row.average_tokens),
            *(words.share(row.shares.get(task)) for task in tasks),
            words.share(row.average) if len(row.shares) == len(tasks) else words.NOTHING,
        ]
        for row in rows
    ]
    return table(["method", "budget", "tokens, true", *tasks, "average"], lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return markdown_table(head, rows)


def _section(part: SectionContent) -> list[str]:
    section = part.section
    found = [f"## {section.model_name} on {task_name(section)}"]
    columns = filled(section, part.rows)
    lines = [
        [_name(row.entry.label, row.entry.is_baseline), row.entry.budget, *(column.cell(row)[0] for column in columns)]
        for row in part.rows
    ]
    found.append(table(["method", "budget", *(column.title for column in columns)], lines))
    found.append("\n".join(f"* **{column.title}**: {column.meaning}." for column in columns))
    if part.tests:
        found.append(f"p values: {', '.join(part.tests)}; {part.comparisons} comparisons.")
    if part.kinds:
        found += ["### By kind of question", _kinds(section, part.kinds)]
    if part.needs:
        found += ["### Tokens that a question needs", *_needs(part)]
    if part.published:
        found += ["### Beside published numbers", _published(part)]
    return found


def _name(label: str, is_baseline: bool) -> str:
    return f"{label} (baseline)" if is_baseline else label


def _kinds(section: Section, kinds: Sequence[str]) -> str:
    lines = []
    for entry in section.entries:
        scores = entry.kind_scores
        lines.append([entry.label, entry.budget, *(words.score(scores.get(kind), percent=True) for kind in kinds)])
    return table(["method", "budget", *kinds], lines)


def _needs(part: SectionContent) -> list[str]:
    lines = [[need.label, *(shown for shown, _ in need_cells(need))] for need in part.needs]
    return [table(["method", *NEED_COLUMNS], lines), NEED_MEANING]


def _published(part: SectionContent) -> str:
    lines = [[match.entry.label, *match_cells(match)] for match in part.published]
    return table(["method", *MATCH_COLUMNS], lines)
