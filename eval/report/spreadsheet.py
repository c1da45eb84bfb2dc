"""The report as CSV: one line an entry, plain numbers, for people's own plots and tables."""

from __future__ import annotations

import csv
import io
from typing import Any

from vtprune.eval.intervals import Estimate
from vtprune.eval.paired import Difference
from vtprune.eval.report.content import Content
from vtprune.eval.report.rows import Row


def to_csv(content: Content) -> str:
    """All sections below each other; empty where something is unknown. Scores are as measured, not in percent."""
    lines = [
        {"model": part.section.model, "task": part.section.task, "metric": part.section.metric, **_line(row)}
        for part in content.sections
        for row in part.rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(row: Row) -> dict[str, Any]:
    entry, split = row.entry, row.split
    return {
        "questions": entry.record["n"],
        "method": entry.label,
        "baseline": entry.is_baseline,
        "budget": entry.budget,
        "positions": entry.record.get("positions"),
        "seeds": " ".join(map(str, entry.seeds)),
        "seed_spread": entry.seed_spread,
        **_estimate("value", entry.estimate),
        "retained": row.retained,
        **_difference("full", row.to_full),
        **_difference("random", row.to_random),
        "tokens_true": entry.average_tokens,
        "tokens_nominal": entry.nominal_tokens,
        "tokens_left": entry.tokens_kept,
        "prefill_flops": entry.prefill_flops,
        "prefill_seconds": entry.prefill_seconds,
        **_estimate("group_a", split.hard if split else None),
        **_estimate("group_a_full_right", split.lost if split else None),
        **_estimate("group_b", split.easy if split else None),
    }


def _estimate(name: str, found: Estimate | None) -> dict[str, Any]:
    values = (None, None, None, None) if found is None else (found.value, found.low, found.high, found.n)
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), values, strict=True))


def _difference(name: str, found: Difference | None) -> dict[str, Any]:
    names = [f"to_{name}{part}" for part in ("", "_low", "_high", "_p", "_p_holm", "_test")]
    if found is None:
        return dict.fromkeys(names)
    values = (found.mean, found.low, found.high, found.p, found.corrected, found.test)
    return dict(zip(names, values, strict=True))
