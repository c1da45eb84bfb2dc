"""The tables of a sweep, for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from vtprune.eval.grid import BASELINES, FULL
from vtprune.eval.store import DONE, Record


def score(record: Record | dict[str, float | None], *, percent: bool) -> str:
    """Value and standard error."""
    factor = 100 if percent else 1
    value, error = record["value"], record["standard_error"]
    assert value is not None
    return f"{factor * value:.1f}" + ("" if error is None else f" ± {factor * error:.1f}")


def in_percent(records: Sequence[Record]) -> bool:
    """Whether a metric's values are shares, to be shown in percent."""
    return all(0 <= record["value"] <= 1 for record in records if record["status"] == DONE)


def unique(values: Sequence[str]) -> list[str]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))


def pooled(records: Sequence[Record]) -> list[Record]:
    """One record for the seeds of a method, with the means of its scores and of their errors."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["label"], record["budget_meaning"], record["status"]), []).append(record)
    return [_mean(group) for group in groups.values()]


def _mean(group: Sequence[Record]) -> Record:
    if len(group) == 1 or group[0]["status"] != DONE:
        return group[0]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    found = {name: mean([r[name] for r in group]) for name in ("value", "standard_error", "average_tokens")}
    kinds = {
        kind: {
            **group[0]["kinds"][kind],
            "value": mean([record["kinds"][kind]["value"] for record in group if kind in record["kinds"]]),
        }
        for kind in group[0]["kinds"]
    }
    return {**group[0], **found, "kinds": kinds}


def _best(records: Sequence[Record]) -> set[str]:
    """Keys of the pruned cells with the highest value."""
    pruned = [record for record in records if record["status"] == DONE and record["pruner"] != FULL]
    top = max((record["value"] for record in pruned), default=None)
    return {record["key"] for record in pruned if record["value"] == top}


def accuracy_table(task: str, records: Sequence[Record]) -> Table:
    """Methods by budgets: score, standard error and the true average of tokens; the best of a budget in bold."""
    records = pooled(records)
    done = [record for record in records if record["status"] == DONE]
    percent = in_percent(records)
    pruned = [record for record in records if record["pruner"] != FULL]
    # Baselines were measured at further budgets, which the report shows.
    others = [record for record in pruned if record["pruner"] not in BASELINES]
    budgets = unique([record["budget_meaning"] for record in others or pruned])
    best = {key for meaning in budgets for key in _best([r for r in pruned if r["budget_meaning"] == meaning])}
    metric = done[0]["metric"] if done else ""
    table = Table(
        title=f"{task}: {metric}{' in %' if percent else ''} ± standard error",
        caption="below each score: visual tokens per image, true mean over the decoder layers; best of a budget bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("pruner", no_wrap=True)
    for meaning in budgets:
        table.add_column(meaning, justify="right")
    full = next((record for record in records if record["pruner"] == FULL), None)
    if full is not None:
        cell = _cell(full, percent=percent, best=False)
        table.add_row("[cyan]full model[/]", *[cell] * max(1, len(budgets)), end_section=True)
    by_place = {(record["label"], record["budget_meaning"]): record for record in pruned}
    for label in unique([record["label"] for record in pruned]):
        row = [by_place.get((label, meaning)) for meaning in budgets]
        table.add_row(label, *["" if r is None else _cell(r, percent=percent, best=r["key"] in best) for r in row])
    return table


def _cell(record: Record, *, percent: bool, best: bool) -> str:
    if record["status"] != DONE:
        return "[red]failed[/]"
    text = score(record, percent=percent)
    return f"{f'[bold green]{text}[/]' if best else text}\n[dim]{record['average_tokens']:.1f}[/]"


def kind_table(task: str, records: Sequence[Record]) -> Table | None:
    """Scores for each kind of question, one block a budget; `None` for a task whose questions have no kinds."""
    done = pooled([record for record in records if record["status"] == DONE])
    kinds = unique([kind for record in done for kind in record["kinds"]])
    if not kinds:
        return None
    percent = in_percent(done)
    asked = {kind: next(r["kinds"][kind]["n"] for r in done if kind in r["kinds"]) for kind in kinds}
    table = Table(title=f"{task}: by kind of question{' in %' if percent else ''}", box=box.SIMPLE_HEAD)
    table.add_column("pruner")
    for kind in kinds:
        table.add_column(f"{kind}\n[dim]n={asked[kind]}[/]", justify="right", no_wrap=True)
    for meaning in unique([record["budget_meaning"] for record in done]):
        block = [record for record in done if record["budget_meaning"] == meaning]
        table.add_row(f"[dim]{meaning}[/]")
        for place, record in enumerate(block):
            values = [record["kinds"].get(kind) for kind in kinds]
            tops = [max(r["kinds"][kind]["value"] for r in block if kind in r["kinds"]) for kind in kinds]
            cells = [
                _kind_cell(value, percent=percent, best=len(block) > 1 and value is not None and value["value"] == top)
                for value, top in zip(values, tops, strict=True)
            ]
            name = "[cyan]full model[/]" if record["pruner"] == FULL else record["label"]
            table.add_row(f"  {name}", *cells, end_section=place == len(block) - 1)
    return table


def _kind_cell(value: dict[str, float] | None, *, percent: bool, best: bool) -> str:
    if value is None:
        return ""
    text = f"{(100 if percent else 1) * value['value']:.0f}"
    return f"[bold green]{text}[/]" if best else text
