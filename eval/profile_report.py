"""What a profile found, for people: tables, from where on pruning pays, and a plot of time against visual tokens."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vtprune.eval.break_even import Curve, Pruning, pruning_of, reach
from vtprune.eval.profile import Found
from vtprune.eval.profiling import EAGER, FULL, GRAPH, IDEAL, PRUNED
from vtprune.eval.store import DONE, Record, write_atomically
from vtprune.eval.tables import unique
from vtprune.eval.timing import Timing

_NEVER = "never"
_MIB = 2**20


def to_data(found: Found) -> dict[str, Any]:
    """Everything as plain data, for JSON."""
    return {
        "machine": found.machine,
        "rows": [
            {**row, "break_even": {mode: pays_from(found, row, mode) for mode in _modes(row)}} for row in found.rows
        ],
        "curves": found.curves,
    }


def pays_from(found: Found, row: Record, mode: str) -> int | str | None:
    """The fewest visual tokens of a picture from which on a row's method pays; `"never"`, or `None` if unknown."""
    known = _pruning(found, row, mode)
    if known is None:
        return None
    pruning, curve = known
    tokens = pruning.pays_from(curve)
    return _NEVER if tokens is None else tokens


def print_found(found: Found, console: Console) -> None:
    """Prints the tables, what fails, and from where on pruning pays."""
    done = [row for row in found.rows if row["status"] == DONE]
    if done:
        console.print(_first_token_table(found, done))
        console.print(_phase_table(done))
        for line in break_even_lines(found, done):
            console.print(f"* {escape(line)}", soft_wrap=True)
    for row in done:
        for what, reason in row["notes"].items():
            console.print(f"[yellow]not measured[/] {escape(_name(row))}: {what}: {escape(reason)}", soft_wrap=True)
    for record in found.failed:
        console.print(f"[red]failed[/] {escape(_name(record))}: {escape(record['error'])}", soft_wrap=True)
    told = ", ".join(f"{name} {value}" for name, value in found.machine.items() if name != "command")
    console.print(f"{escape(told)}\n{escape(found.machine['command'])}", soft_wrap=True)


def break_even_lines(found: Found, rows: Sequence[Record]) -> list[str]:
    """For each method, budget, batch size and mode from how many visual tokens on pruning pays, and where it does."""
    lines = []
    for row in rows:
        for mode in _modes(row):
            tokens = pays_from(found, row, mode)
            if tokens is None:
                continue
            where = f"{row['label']}, {row['budget_meaning']}, batch {row['batch']}, {mode}: "
            if tokens == _NEVER:
                curve = Curve.of(found.curve(row["batch"], mode))
                lines.append(f"{where}pays never on this machine (up to {reach(curve)} visual tokens)")
            else:
                lines.append(f"{where}pays from about {tokens} visual tokens on")
    kinds = {(row["label"], row["budget_meaning"], mode): row["tokens"] for row in rows for mode in _modes(row)}
    for (label, meaning, mode), tokens in kinds.items():
        same = [row for row in rows if (row["label"], row["budget_meaning"]) == (label, meaning)]
        gains = {row["batch"]: gain for row in same if (gain := _gain(row, mode)) is not None}
        if len(gains) < 2:
            continue
        faster = [batch for batch in sorted(gains) if all(gains[more] > 1 for more in gains if more >= batch)]
        told = f"from batch {faster[0]} on" if faster else f"at no batch size up to {max(gains)}"
        lines.append(f"{label}, {meaning}, {mode}: with {tokens} visual tokens the first token comes sooner {told}")
    return lines


def _first_token_table(found: Found, rows: Sequence[Record]) -> Table:
    table = Table(
        title=f"{escape(rows[0]['model'])} on {escape(found.machine['device'])}: time to first token, ms: "
        "median (quartiles)",
        caption="pays from: visual tokens of a picture from which on selection and prefill are faster than prefill of "
        "all; FLOPs: of the language model, nominal",
        box=box.SIMPLE_HEAD,
    )
    columns = ("batch", "tokens", "mode", "unpruned", "pruned", "ideal", "faster", "of ideal", "FLOPs", "selection")
    for column in ("pruner", *columns, "pays from"):
        table.add_column(column, justify="left" if column in ("pruner", "mode") else "right")
    for row in rows:
        for mode in _modes(row):
            measured = row["measured"][mode]
            times = {name: _timing(measured[name]["first_token"]) for name in measured}
            selection = _timing(row["selection"] if mode == EAGER else row["recorded_selection"])
            full, pruned, ideal = (times.get(name) for name in (FULL, PRUNED, IDEAL))
            before, after = row["flops"]
            pays = pays_from(found, row, mode)
            table.add_row(
                escape(row["label"]),
                str(row["batch"]),
                f"{row['tokens']} -> {row['keep']:.0f}",
                mode,
                *("" if timing is None else str(timing) for timing in (full, pruned, ideal)),
                _ratio(full, pruned),
                _ratio(pruned, ideal, ""),
                f"{before / after:.2f} x fewer" if after else "",
                "" if selection is None else str(selection),
                "" if pays is None else str(pays),
            )
    return table


def _phase_table(rows: Sequence[Record]) -> Table:
    table = Table(
        title="Medians of the parts: unpruned / pruned / ideal",
        caption="vision: tower, projector, embedding; prefill: the language model with the selection in it; KV: bytes "
        "in the cache, and what the cost model says; peak: above the weights",
        box=box.SIMPLE_HEAD,
    )
    for column in ("pruner", "batch", "mode", "vision, ms", "prefill, ms", "decode a token, ms", "peak, MiB"):
        table.add_column(column, justify="left" if column in ("pruner", "mode") else "right")
    table.add_column("KV, MiB", justify="right")
    table.add_column("KV nominal, MiB", justify="right")
    for row in rows:
        for mode in _modes(row):
            measured = [row["measured"][mode].get(name) for name in (FULL, PRUNED, IDEAL)]
            parts = [
                _joined([one and one[phase] and one[phase]["median"] for one in measured], 2)
                for phase in ("vision", "prefill", "decode")
            ]
            sizes = [
                _joined([one and one[kind] is not None and one[kind] / _MIB for one in measured], 1)
                for kind in ("peak_bytes", "kv_bytes")
            ]
            nominal = _joined([size / _MIB for size in row["nominal_kv_bytes"]], 1)
            table.add_row(escape(row["label"]), str(row["batch"]), mode, *parts, *sizes, nominal)
    return table


def plot_profile(found: Found, path: Path) -> bool:
    """Draws prefill time against visual tokens, a panel for each batch size and mode, with break-evens marked; PNG.

    Returns:
        Whether there was anything to draw.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in found.rows if row["status"] == DONE]
    panels = [
        (batch, mode)
        for batch in sorted({row["batch"] for row in rows})
        for mode in (EAGER, GRAPH)
        if found.curve(batch, mode) and any(row["batch"] == batch and mode in row["measured"] for row in rows)
    ]
    if not panels:
        return False
    modes = unique([mode for _, mode in panels])
    batches = sorted({batch for batch, _ in panels})
    figure = Figure(figsize=(5.2 * len(batches) + 2.6, 4.2 * len(modes)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(modes), len(batches), squeeze=False)
    names = unique([_method(row) for row in rows])
    colors = colormaps["tab10" if len(names) <= 10 else "tab20"]
    for batch, mode in panels:
        axes = grid[modes.index(mode)][batches.index(batch)]
        curve = Curve.of(found.curve(batch, mode))
        counts = [tokens for tokens, _ in curve.points]
        axes.plot(counts, [curve.at(tokens) for tokens in counts], color="0.25", marker=".", label="unpruned")
        for row in rows:
            known = _pruning(found, row, mode) if row["batch"] == batch else None
            if known is None:
                continue
            pruning, color = known[0], colors(names.index(_method(row)) % colors.N)
            label = _method(row)
            dense = [max(counts[0], curve.last * step / 64) for step in range(65)]
            axes.plot(dense, [pruning.time(curve, tokens) for tokens in dense], color=color, linewidth=1.3, label=label)
            axes.plot(row["tokens"], pruning.time(curve, row["tokens"]), color=color, marker="o", markersize=5)
            start = pruning.pays_from(curve)
            if start is not None and start <= curve.last:
                axes.plot(start, curve.at(start), color=color, marker="D", markersize=7, markerfacecolor="none")
                axes.axvline(start, color=color, linewidth=0.8, linestyle=":")
        axes.set_title(f"batch {batch}, {mode}", fontsize=10)
        axes.set_xlabel("visual tokens of a picture")
        axes.set_ylabel("selection and prefill, ms")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    for number, axes in enumerate(grid.flat):
        if (batches[number % len(batches)], modes[number // len(batches)]) not in panels:
            axes.set_visible(False)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize=9)
    machine = found.machine
    figure.suptitle(
        f"{rows[0]['model']} on {machine['device']}; diamonds: from there on pruning pays\n"
        f"torch {machine['torch']}, transformers {machine['transformers']}, vtprune {machine['vtprune']}, "
        f"{machine['time'][:10]}",
        fontsize=10,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    return True


def _pruning(found: Found, row: Record, mode: str) -> tuple[Pruning, Curve] | None:
    times = found.curve(row["batch"], mode)
    if row["status"] != DONE or not times:
        return None
    curve = Curve.of(times)
    pruning = pruning_of(row, curve, mode)
    return None if pruning is None else (pruning, curve)


def _modes(row: Record) -> list[str]:
    return list(row.get("measured", {}))


def _gain(row: Record, mode: str) -> float | None:
    measured = row["measured"].get(mode, {})
    if FULL not in measured or PRUNED not in measured:
        return None
    return float(measured[FULL]["first_token"]["median"] / measured[PRUNED]["first_token"]["median"])


def _method(row: Record) -> str:
    return f"{row['label']}, {row['budget_meaning']}"


def _name(record: Record) -> str:
    what = _method(record) if "label" in record else "unpruned, by visual tokens"
    return f"{what}, batch {record['batch']}"


def _timing(data: dict[str, Any] | None) -> Timing | None:
    return None if data is None else Timing(**data)


def _ratio(above: Timing | None, below: Timing | None, unit: str = " x") -> str:
    return "" if above is None or below is None else f"{above.median / below.median:.2f}{unit}"


def _joined(values: Sequence[float | bool | None], digits: int) -> str:
    if not any(values):
        return ""
    return " / ".join(f"{value:.{digits}f}" if value else "-" for value in values)
