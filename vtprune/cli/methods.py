"""Lists the pruning methods."""

from __future__ import annotations

from typing import Any

from vtprune.cli.common import JsonOption, print_json


def list_command(as_json: JsonOption = False) -> None:
    """Lists the pruning methods."""
    from vtprune.method_docs import stage_text
    from vtprune.registry import pruner_classes

    rows: list[dict[str, Any]] = []
    for name, cls in pruner_classes().items():
        method = cls()
        rows.append(
            {
                "name": name,
                "year": cls.year,
                "layers": list(method.layers),
                "acts": stage_text(method),
                "signals": sorted(signal.value for signal in cls.signals),
                "query_aware": cls.query_aware,
                "training_free": cls.training_free,
                "merges": cls.merges,
                "adaptive": method.is_adaptive,
                "positions": cls.default_positions,
                "options": method.config(),
                "summary": cls.summary,
                "paper": cls.paper,
            }
        )
    if as_json:
        print_json(rows)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption="layers of a decoder with 32; more in docs/methods.md and with --json")
    for column in ("name", "removes tokens", "what it does", "notes"):
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        notes = {
            "sees the question": row["query_aware"],
            "makes new tokens": row["merges"],
            "own count": row["adaptive"],
            "needs training": not row["training_free"],
        }
        table.add_row(row["name"], row["acts"], row["summary"], ", ".join(note for note in notes if notes[note]))
    Console().print(table)
