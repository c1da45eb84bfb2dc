"""Writes the parts of README.md that follow from the code: `python -m vtprune.docs` in a checkout."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vtprune.pruner import Pruner
from vtprune.registry import pruner_classes

README = Path(__file__).resolve().parents[1] / "README.md"


def pruner_table() -> str:
    """All registered methods as a Markdown table."""
    rows = [
        "| name | removes tokens | sees the question | training | what it does | source |",
        "|---|---|---|---|---|---|",
    ]
    for name, cls in pruner_classes().items():
        cells = (
            f"`{name}`",
            _stage(cls()),
            "yes" if cls.query_aware else "no",
            "none" if cls.training_free else "needed",
            cls.summary,
            re.sub(r"arXiv (\d+\.\d+)", r"[arXiv \1](https://arxiv.org/abs/\1)", cls.paper),
        )
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _stage(pruner: Pruner) -> str:
    if pruner.layers == (0,):
        return "before the language model"
    names = " and ".join(str(layer) for layer in pruner.layers)
    return f"before decoder layer{'s' if len(pruner.layers) > 1 else ''} {names}"


def replace_block(text: str, name: str, content: str) -> str:
    """`text` with `content` between the lines `<!-- begin: name -->` and `<!-- end: name -->`.

    Raises:
        ValueError: The two marks do not stand in `text` once each, in this order.
    """
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text must have the lines {begin!r} and {end!r} once each, in this order")
    return f"{text[: text.index(begin)]}{begin}{content.strip()}\n{text[text.index(end) :]}"


def main() -> None:
    """Rewrites README.md of the checkout."""
    if not README.is_file():
        sys.exit(f"no {README}; run this in a checkout")
    README.write_text(replace_block(README.read_text(encoding="utf-8"), "pruners", pruner_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
