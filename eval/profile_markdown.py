"""What a profile found as Markdown tables, medians with quartiles, for documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtprune.eval.profile import Found
from vtprune.eval.profiling import EAGER, FULL, IDEAL, PRUNED
from vtprune.eval.store import DONE, Record
from vtprune.eval.timing import Timing

_MIB = 2**20


def to_markdown(found: Found) -> str:
    """Prefill and first token in one table, decoding and caches in another where it was measured; what ran below."""
    rows = [row for row in found.rows if row["status"] == DONE]
    told = ", ".join(f"{name} {value}" for name, value in found.machine.items() if name != "command")
    parts = [_prefill(rows), _decoding(rows), f"`{found.machine['command']}`\n\n{told}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[str]) -> str:
    """A table of texts, right-aligned but for the columns in `left`.

    Example:
        >>> print(markdown_table(["name", "ms"], [["a", "1"]], ["name"]))
        | name | ms |
        |---|--:|
        | a | 1 |
    """
    rule = "|".join("---" if column in left else "--:" for column in columns)
    return "\n".join(
        ["| " + " | ".join(columns) + " |", f"|{rule}|", *("| " + " | ".join(line) + " |" for line in lines)]
    )


def _prefill(rows: Sequence[Record]) -> str:
    columns = ["method", "batch", "tokens", "mode", "prefill, unpruned", "pruned", "ideal", "faster", "of ideal"]
    columns += ["first token, unpruned", "pruned", "ideal", "selection"]
    lines = []
    for row in rows:
        for mode, measured in row["measured"].items():
            full, pruned, ideal = _times(measured, "prefill")
            selection = row["selection"] if mode == EAGER else row["recorded_selection"]
            lines.append(
                [
                    *_head(row, mode),
                    *map(_text, (full, pruned, ideal)),
                    f"{full.median / pruned.median:.2f} x" if full and pruned else "-",
                    f"{pruned.median / ideal.median:.2f}" if pruned and ideal else "-",
                    *map(_text, _times(measured, "first_token")),
                    _text(None if selection is None else Timing(**selection)),
                ]
            )
    return markdown_table(columns, lines, ["method", "mode"])


def _decoding(rows: Sequence[Record]) -> str:
    lines = []
    for row in rows:
        for mode, measured in row["measured"].items():
            times = _times(measured, "decode")
            if any(times):
                held = [measured[name]["kv_bytes"] if name in measured else None for name in (FULL, PRUNED, IDEAL)]
                sizes = ["-" if size is None else f"{size / _MIB:.0f}" for size in held]
                lines.append([*_head(row, mode), *map(_text, times), *sizes])
    columns = ["method", "batch", "tokens", "mode", "decode a token, unpruned", "pruned", "ideal"]
    columns += ["KV in MiB, unpruned", "pruned", "ideal"]
    return markdown_table(columns, lines, ["method", "mode"]) if lines else ""


def _head(row: Record, mode: str) -> list[str]:
    return [f"`{row['label']}`", str(row["batch"]), f"{row['tokens']} -> {row['keep']:.0f}", mode]


def _times(measured: dict[str, Any], phase: str) -> list[Timing | None]:
    found = [measured.get(name, {}).get(phase) for name in (FULL, PRUNED, IDEAL)]
    return [None if one is None else Timing(**one) for one in found]


def _text(timing: Timing | None) -> str:
    return "-" if timing is None else str(timing)
