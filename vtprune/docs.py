"""Writes the parts of the documents that follow from code and results, in a checkout.

`python -m vtprune.docs` renews the table of methods and docs/methods.md; with the path of a sweep's `results.jsonl`
it also puts the results into README.md and the model card.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vtprune.method_docs import linked, markdown_table, methods_page, stage_text
from vtprune.registry import pruner_classes

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
METHODS = ROOT / "docs" / "methods.md"
MODEL_CARD = ROOT / "eval" / "embedded" / "model" / "README.md"


def pruner_table() -> str:
    """All registered methods as a Markdown table."""
    head = ("name", "removes tokens", "sees the question", "training", "what it does", "source")
    rows = [
        (
            f"`{name}`",
            stage_text(cls()),
            "yes" if cls.query_aware else "no",
            "none" if cls.training_free else "needed",
            cls.summary,
            linked(cls.paper),
        )
        for name, cls in pruner_classes().items()
    ]
    return markdown_table(head, rows)


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


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    average = record["average_tokens"]
    kept = f"{average:.0f}" if average == record["tokens_kept"] else f"{average:.0f} on average"
    return f"{_percent(record)} ({kept})"


def _percent(record: dict[str, Any]) -> str:
    return f"{100 * record['value']:.1f} ± {100 * record['standard_error']:.1f}"


def replace_block(text: str, name: str, content: str) -> str:
    """`text` with `content` between the lines `<!-- begin: name -->` and `<!-- end: name -->`.

    Raises:
        ValueError: The two marks do not stand in `text` once each, in this order.
    """
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text must have the lines {begin!r} and {end!r} once each, in this order")
    return f"{text[: text.index(begin)]}{begin}{content.strip()}\n{text[text.index(end) :]}"


def main(results: str | None = None) -> None:
    """Rewrites README.md of the checkout and, given a sweep's results, the model card.

    Args:
        results: The `results.jsonl` of a sweep over the embedded model.
    """
    if not README.is_file():
        sys.exit(f"no {README}; run this in a checkout")
    _rewrite(README, {"pruners": pruner_table()})
    METHODS.write_text(methods_page(), encoding="utf-8")
    if results is not None:
        lines = Path(results).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        first = next(record for record in records if record["status"] == "done")
        task = f"Exact match in %, ± one standard error, {first['n']} questions"
        table = f"{task} (in brackets: visual tokens per image, true mean over the decoder layers):"
        _rewrite(README, {"sweep": f"{table}\n\n{sweep_table(records)}"})
        kinds = f"By kind of question at 64 tokens, in %:\n\n{kinds_table(records, '64 tokens per image')}"
        _rewrite(MODEL_CARD, {"sweep": f"{table}\n\n{sweep_table(records)}\n\n{kinds}"})


def _rewrite(path: Path, blocks: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for name, content in blocks.items():
        text = replace_block(text, name, content)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
