"""Writes the parts of the documents that follow from code and results, in a checkout.

`python -m vtprune.docs` renews the lists of methods and models, docs/methods.md and docs/models.md. With the folder of
a sweep over the embedded model it also renews what was measured: after the plain `vtprune sweep` the tables of README
and model card, after `vtprune sweep --preset embedded --pruners all` those of docs/embedded-results.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vtprune.method_docs import linked, markdown_table, methods_page, stage_text
from vtprune.model_docs import family_list, models_page
from vtprune.registry import pruner_classes
from vtprune.result_docs import kinds_table, meaning, result_blocks, sweep_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
METHODS = ROOT / "docs" / "methods.md"
MODELS = ROOT / "docs" / "models.md"
RECORDS = ROOT / "docs" / "models.json"
RESULTS = ROOT / "docs" / "embedded-results.md"
DETAIL = "64 tokens per image"
"""The budget of the tables that look closer."""

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
    """Rewrites README.md and the pages of methods and models, and the tables that a sweep's results are for.

    Args:
        results: The folder of a sweep over the embedded model: with all methods on several tasks the tables of
            docs/embedded-results.md are from it, otherwise those of README.md and the model card.
    """
    if not README.is_file():
        sys.exit(f"no {README}; run this in a checkout")
    models = json.loads(RECORDS.read_text(encoding="utf-8"))
    _rewrite(README, {"pruners": pruner_table(), "models": family_list(models)})
    MODELS.write_text(models_page(models), encoding="utf-8")
    METHODS.write_text(methods_page(), encoding="utf-8")
    if results is not None:
        _write_results(Path(results))


def _write_results(folder: Path) -> None:
    # Only here: evaluation needs packages that the library alone does without.
    from vtprune.eval.analysis import read_folder
    from vtprune.eval.grid import DEFAULT_PRUNERS, FULL, parse_budgets
    from vtprune.eval.sweep_config import DEFAULT_BUDGETS
    from vtprune.eval.tables import pooled

    analysis = read_folder(folder)
    budgets = [str(budget) for budget in parse_budgets(DEFAULT_BUDGETS)]
    if len(analysis.sections) > 1:
        lacking = set(pruner_classes()) - {entry.pruner for section in analysis.sections for entry in section.pruned}
        if lacking:
            sys.exit(f"{RESULTS.name} shows every method, but {folder} lacks {', '.join(sorted(lacking))}")
        _rewrite(RESULTS, result_blocks(analysis, budgets=budgets, detail=DETAIL))
        return
    # What the plain command measures, without the baselines at further true averages of tokens.
    shown = (FULL, *DEFAULT_PRUNERS)
    records = [
        record
        for record in analysis.records
        if record["pruner"] in shown and (record["pruner"] == FULL or record["budget_meaning"] in budgets)
    ]
    records = pooled(records)
    table = f"{meaning(records[0])}\n\n{sweep_table(records)}"
    kinds = f"By kind of question at 64 tokens, in %:\n\n{kinds_table(records, DETAIL)}"
    _rewrite(README, {"sweep": table})
    _rewrite(MODEL_CARD, {"sweep": f"{table}\n\n{kinds}"})


def _rewrite(path: Path, blocks: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for name, content in blocks.items():
        text = replace_block(text, name, content)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
