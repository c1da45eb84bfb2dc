"""Tables of measured accuracy for README.md, the model card and docs/embedded-results.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vtprune.method_docs import markdown_table

if TYPE_CHECKING:
    from vtprune.eval.analysis import Analysis, Entry, Section

_RANDOM = "random"


def sweep_table(records: list[dict[str, Any]]) -> str:
    """The finished cells of one task as a Markdown table: methods down, budgets across.

    Raises:
        ValueError: No finished cell of the full model.
    """
    done = [record for record in records if record["status"] == "done"]
    full = next((record for record in done if record["label"] == "full"), None)
    if full is None:
        raise ValueError("the results hold no finished cell of the full model")
    cells = {(record["label"], record["budget_meaning"]): record for record in done}
    labels = list(dict.fromkeys(record["label"] for record in done if record is not full))
    budgets = list(dict.fromkeys(record["budget_meaning"] for record in done if record is not full))
    rows = [f"| method | {' | '.join(budgets)} |", f"|---|{'--:|' * len(budgets)}"]
    rows.append(f"| full model, {full['tokens_kept']:.0f} tokens |{f' {_percent(full)} |' * len(budgets)}")
    for label in labels:
        values = [_cell(cells.get((label, budget))) for budget in budgets]
        rows.append(f"| `{label}` | {' | '.join(values)} |")
    return "\n".join(rows)


def kinds_table(records: list[dict[str, Any]], budget: str) -> str:
    """The accuracies by kind of question at one budget, and of the full model, as a Markdown table."""
    done = [record for record in records if record["status"] == "done"]
    chosen = [record for record in done if record["label"] == "full" or record["budget_meaning"] == budget]
    kinds = list(chosen[0]["kinds"])
    rows = [f"| {budget} | {' | '.join(kinds)} |", f"|---|{'--:|' * len(kinds)}"]
    for record in chosen:
        values = [f"{100 * record['kinds'][kind]['value']:.0f}" for kind in kinds]
        rows.append(f"| `{record['label']}` | {' | '.join(values)} |")
    return "\n".join(rows)


def meaning(record: dict[str, Any]) -> str:
    """What the cells of `sweep_table` say."""
    return (
        f"Exact match in %, ± one standard error, {record['n']} questions (in brackets: visual tokens per image, true "
        "mean over the decoder layers):"
    )


def result_blocks(analysis: Analysis, *, budgets: Sequence[str], detail: str) -> dict[str, str]:
    """The tables of docs/embedded-results.md by name.

    Args:
        analysis: A sweep of one model over several tasks.
        budgets: In words, as columns.
        detail: The budget of the tables that look closer.

    Raises:
        ValueError: A task lacks the full model, or `random`.
    """
    sections = analysis.sections
    for section in sections:
        if section.full is None or all(entry.pruner != _RANDOM for entry in section.pruned):
            raise ValueError(f"the results on {section.task} lack the full model or {_RANDOM}; measure both")
    shown = [label for label in sections[0].labels if all(_entry(sections[0], label, budget) for budget in budgets)]
    return {
        "run": _run(analysis),
        "mean": _mean_table(sections, shown, budgets),
        "random": _random_table(sections, shown, budgets),
        "tasks": _task_table(sections, shown, detail),
        "levels": _level_table(sections, shown, detail),
        "needs": _need_table(sections, shown, budgets),
    }


def _run(analysis: Analysis) -> str:
    record = analysis.records[0]
    known = record["versions"]
    named = [name for name in ("vtprune", "torch", "transformers", "lmms-eval") if name in known]
    versions = ", ".join(f"{name} {known[name]}" for name in named)
    questions = sum(section.n for section in analysis.sections)
    cells = len(analysis.records)
    asked = sum(int(record["n"]) for record in analysis.records)
    return (
        f"{cells:,} cells, {questions:,} questions a method and budget, {asked:,} answers; {record['machine']}, "
        f"{record['dtype'] if record['dtype'] != 'auto' else 'bf16 (the weights as they are stored)'}; {versions}."
    )


def _entry(section: Section, label: str, budget: str) -> Entry | None:
    found = (entry for entry in section.pruned if (entry.label, entry.budget) == (label, budget))
    return next(found, None)


def _mean_table(sections: Sequence[Section], labels: Iterable[str], budgets: Sequence[str]) -> str:
    """Mean over the tasks, and true tokens."""
    full = fmean([section.full.value for section in sections if section.full is not None])
    rows = [("full model, all tokens", *[f"{100 * full:.1f}"] * len(budgets))]
    for label in labels:
        cells = []
        for budget in budgets:
            entries = _all(_entry(section, label, budget) for section in sections)
            value, tokens = fmean([e.value for e in entries]), fmean([e.average_tokens for e in entries])
            cells.append(f"{100 * value:.1f} ({tokens:.0f})")
        rows.append((f"`{label}`", *cells))
    return markdown_table(("method", *budgets), rows)


def _random_table(sections: Sequence[Section], labels: Sequence[str], budgets: Sequence[str]) -> str:
    """Differences to random at the same true tokens, over the questions of all tasks, corrected over the table."""
    from vtprune.eval.paired import correct, paired_difference

    cells = []
    for label in labels:
        for budget in budgets:
            own: dict[Hashable, float] = {}
            other: dict[Hashable, float] = {}
            for section in sections:
                entry = _entry(section, label, budget)
                baseline = None if entry is None else section.baseline(_RANDOM, entry)
                if entry is not None and baseline is not None and entry.pruner != _RANDOM:
                    own |= {(section.task, question): score for question, score in entry.scores.items()}
                    other |= {(section.task, question): score for question, score in baseline.scores.items()}
            cells.append(paired_difference(own, other))
    corrected = iter(correct(cells))
    rows = []
    for label in labels:
        found = [next(corrected) for _ in budgets]
        if all(difference is None for difference in found):
            continue
        words = []
        for difference in found:
            if difference is None or difference.low is None or difference.high is None:
                words.append("")
                continue
            half = 50 * (difference.high - difference.low)
            text = f"{100 * difference.mean:+.1f} ± {half:.1f}"
            words.append(f"**{text}**" if difference.is_significant else text)
        rows.append((f"`{label}`", *words))
    return markdown_table(("method", *budgets), rows)


def _task_table(sections: Sequence[Section], labels: Sequence[str], budget: str) -> str:
    head = (budget, "tokens, true", *(section.task.removeprefix("vtprune_") for section in sections))
    full = [section.full for section in sections if section.full is not None]
    rows = [("full model", f"{full[0].average_tokens:.0f}", *(f"{100 * entry.value:.1f}" for entry in full))]
    for label in labels:
        entries = _all(_entry(section, label, budget) for section in sections)
        rows.append((f"`{label}`", f"{entries[0].average_tokens:.0f}", *(f"{100 * e.value:.1f}" for e in entries)))
    return markdown_table(head, rows)


def _level_table(sections: Sequence[Section], labels: Sequence[str], budget: str) -> str:
    """Mean over the tasks that have levels."""
    from vtprune.eval.embedded.levels import LEVELS

    with_levels = [section for section in sections if all(_level(section.full, name) is not None for name in LEVELS)]
    rows = []
    for label in (None, *labels) if with_levels else ():
        entries = _all(s.full if label is None else _entry(s, label, budget) for s in with_levels)
        values = [fmean([_level(entry, level) or 0.0 for entry in entries]) for level in LEVELS]
        rows.append(("full model" if label is None else f"`{label}`", *(f"{100 * value:.1f}" for value in values)))
    return markdown_table((budget, *LEVELS), rows)


def _level(entry: Entry | None, level: str) -> float | None:
    """Mean over the seeds of the metric of one level."""
    if entry is None:
        return None
    found = [run.record["metrics"].get(f"{run.record['metric']}_{level}") for run in entry.runs]
    return None if None in found else fmean([metric["value"] for metric in found])


def _need_table(sections: Sequence[Section], labels: Sequence[str], budgets: Sequence[str]) -> str:
    """The oracle of each method, mean over the tasks."""
    from vtprune.eval.token_need import token_needs

    # With the same budgets for all: an oracle that has more to choose from guesses right more often.
    equal = [
        dataclasses.replace(section, entries=tuple(e for e in section.entries if e.is_full or e.budget in budgets))
        for section in sections
    ]
    needs = [{need.label: need for need in token_needs(section)} for section in equal]
    rows = []
    for label in labels:
        own = _all(found.get(label) for found in needs)
        if not own:
            continue
        rows.append(
            (
                f"`{label}`",
                f"{fmean([need.oracle.tokens for need in own]):.0f}",
                f"{100 * fmean([need.oracle.value for need in own]):.1f}",
                f"{100 * fmean([need.fixed_value for need in own]):.1f}",
                f"{fmean([need.stable.tokens for need in own]):.0f}",
                f"{100 * fmean([need.unstable for need in own]):.1f}",
            )
        )
    head = (
        "method",
        "oracle: tokens",
        "right, %",
        "one budget of that cost: right, %",
        "stable: tokens",
        "unstable, %",
    )
    return markdown_table(head, rows)


def _all(entries: Iterable[Any]) -> list[Any]:
    return [entry for entry in entries if entry is not None]


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    average = record["average_tokens"]
    kept = f"{average:.0f}" if average == record["tokens_kept"] else f"{average:.0f} on average"
    return f"{_percent(record)} ({kept})"


def _percent(record: dict[str, Any]) -> str:
    return f"{100 * record['value']:.1f} ± {100 * record['standard_error']:.1f}"
