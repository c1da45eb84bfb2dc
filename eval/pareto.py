"""Accuracy against visual tokens as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from vtprune.eval.grid import FULL
from vtprune.eval.store import DONE, Record, write_atomically
from vtprune.eval.tables import in_percent, pooled, unique

_MARKERS = "osD^vP*Xhd<>p8"


def plot_pareto(task: str, records: Sequence[Record], path: Path) -> bool:
    """Draws one line a method over the true average of visual tokens, the full model as a level; PNG.

    Returns:
        Whether there was anything to draw.
    """
    done = [record for record in records if record["status"] == DONE]
    lines = pareto_lines(done)
    if not lines:
        return False
    factor = 100 if in_percent(done) else 1
    figure = Figure(figsize=(9, 5.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    full = next((record for record in done if record["pruner"] == FULL), None)
    if full is not None:
        level, error = factor * full["value"], factor * (full["standard_error"] or 0)
        name = f"full model ({full['average_tokens']:.0f} tokens)"
        axes.axhline(level, color="0.35", linestyle="--", linewidth=1.2, label=name)
        axes.axhspan(level - error, level + error, color="0.35", alpha=0.12, linewidth=0)
    colors = colormaps["tab10" if len(lines) <= 10 else "tab20"]
    for number, (label, points) in enumerate(lines.items()):
        axes.errorbar(
            [point["average_tokens"] for point in points],
            [factor * point["value"] for point in points],
            yerr=[factor * (point["standard_error"] or 0) for point in points],
            label=label,
            color=colors(number % colors.N),
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=6,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2.5,
            alpha=0.9,
        )
    axes.set_xscale("log", base=2)
    ticks = _ticks([point["average_tokens"] for points in lines.values() for point in points])
    axes.set_xlim(0.92 * ticks[0], 1.08 * ticks[-1])
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("visual tokens per image, true mean over the decoder layers (log scale)")
    axes.set_ylabel(f"{done[0]['metric']}{' in %' if factor == 100 else ''}, bars: ± 1 standard error")
    axes.set_title(f"{Path(done[0]['model']).name} on {task}, n = {done[0]['n']}")
    axes.grid(visible=True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    return True


def pareto_lines(records: Sequence[Record]) -> dict[str, list[Record]]:
    """For each method its budgets in ascending order, the seeds of one together; those without tokens have no place."""
    pruned = [r for r in pooled(records) if r["status"] == DONE and r["pruner"] != FULL and r["average_tokens"] > 0]
    return {
        label: sorted((r for r in pruned if r["label"] == label), key=lambda r: float(r["average_tokens"]))
        for label in unique([record["label"] for record in pruned])
    }


def _ticks(tokens: Sequence[float]) -> list[float]:
    """Powers of two that enclose the points."""
    low, high = min(tokens), max(tokens)
    ticks = [1.0]
    while ticks[-1] < high:
        ticks.append(2 * ticks[-1])
    while len(ticks) > 1 and ticks[1] <= low:
        ticks.pop(0)
    return ticks
