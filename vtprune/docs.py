"""Writes the parts of the documents that follow from code and results, in a checkout.

`python -m vtprune.docs` renews the lists of methods and models, docs/methods.md and docs/models.md; with the path of a
sweep's `results.jsonl` it also puts the results into README.md and the model card, and those of all methods into
docs/embedded-sweep.md.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from vtprune.method_docs import linked, markdown_table, methods_page, stage_text
from vtprune.model_docs import family_list, models_page
from vtprune.registry import pruner_classes

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
METHODS = ROOT / "docs" / "methods.md"
MODELS = ROOT / "docs" / "models.md"
RECORDS = ROOT / "docs" / "models.json"
SWEEP = ROOT / "docs" / "embedded-sweep.md"
_SWEEP_ADVICE = """\
How to read it. The model is small and its pictures are plain, so that the order of methods here says little about \
their order on a large model; what it shows is that each method works, and how differently they fail. A budget speaks \
of the tokens left at the end: methods that act inside the decoder (`fastv`, `sparsevlm`, `pyramiddrop`, ...) process \
more on the way, which the brackets tell, and are not to be compared with the others at equal rows. `drop-all` and \
`vtw` have no budget and repeat one result. `downsample` encodes pictures of a size that this tower, made for one \
resolution, was never trained on; averaging neighbours (`pool`, `m3`) is what the model was partly trained for. `trim` \
takes the patches least like the question for the relevant ones, as its code does because CLIP's patches run against \
its text; the patches of this tower do not, and `trim(negate=False)` does better here, though not better than random."""

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


def sweep_page(records: list[dict[str, Any]]) -> str:
    """The whole of `docs/embedded-sweep.md`: every method on the embedded model, and what loses to random."""
    done = [record for record in records if record["status"] == "done"]
    first = done[0]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("vtprune", "torch", "transformers"))
    budgets = list(dict.fromkeys(record["budget_meaning"] for record in done if record["label"] != "full"))
    parts = [
        "# Every method on the embedded model",
        f"Written by `python -m vtprune.docs` from one run of `vtprune sweep --pruners all` ({versions}; "
        f"{first['n']} held-out questions of seven kinds about drawn scenes).",
        _SWEEP_ADVICE,
        f"{_meaning(first)}\n\n{sweep_table(records)}",
        "## Against random",
        "The difference to `random` at the same budget, against twice its standard error as of independent samples. "
        "All methods answer the same questions, so that smaller differences may be real too.",
    ]
    parts += [_against_random(done, budget) for budget in budgets]
    parts += [f"## By kind of question\n\nIn %, at 64 tokens:\n\n{kinds_table(records, '64 tokens per image')}"]
    return "\n\n".join(parts) + "\n"


def _against_random(done: list[dict[str, Any]], budget: str) -> str:
    cells = {record["label"]: record for record in done if record["budget_meaning"] == budget}
    random = cells.pop("random")
    groups: dict[str, list[str]] = {"loses": [], "no clear difference": [], "wins": []}
    for label, record in sorted(cells.items(), key=lambda cell: cell[1]["value"]):
        difference = record["value"] - random["value"]
        error = math.hypot(record["standard_error"], random["standard_error"])
        name = "loses" if difference < -2 * error else "wins" if difference > 2 * error else "no clear difference"
        groups[name].append(f"`{label}` ({100 * difference:+.1f})")
    lines = [f"* {name}: {', '.join(group) or 'none'}" for name, group in groups.items()]
    return "\n".join([f"**{budget}** (`random`: {_percent(random)}), difference in points:", "", *lines])


def _meaning(record: dict[str, Any]) -> str:
    return (
        f"Exact match in %, ± one standard error, {record['n']} questions (in brackets: visual tokens per image, true "
        "mean over the decoder layers):"
    )


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
    """Rewrites README.md and the pages of methods and models, and, given a sweep's results, its tables and the card.

    Args:
        results: The `results.jsonl` of a sweep over the embedded model.
    """
    if not README.is_file():
        sys.exit(f"no {README}; run this in a checkout")
    models = json.loads(RECORDS.read_text(encoding="utf-8"))
    _rewrite(README, {"pruners": pruner_table(), "models": family_list(models)})
    MODELS.write_text(models_page(models), encoding="utf-8")
    METHODS.write_text(methods_page(), encoding="utf-8")
    if results is not None:
        lines = Path(results).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        first = next(record for record in records if record["status"] == "done")
        from vtprune.eval.grid import DEFAULT_PRUNERS

        # The README shows what the plain command measures; every method has a page of its own.
        few = [record for record in records if record["label"] in ("full", *DEFAULT_PRUNERS)]
        table = f"{_meaning(first)}\n\n{sweep_table(few)}"
        _rewrite(README, {"sweep": table})
        kinds = f"By kind of question at 64 tokens, in %:\n\n{kinds_table(few, '64 tokens per image')}"
        _rewrite(MODEL_CARD, {"sweep": f"{table}\n\n{kinds}"})
        if {record["label"] for record in records} >= {*pruner_classes()}:
            SWEEP.write_text(sweep_page(records), encoding="utf-8")


def _rewrite(path: Path, blocks: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for name, content in blocks.items():
        text = replace_block(text, name, content)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
