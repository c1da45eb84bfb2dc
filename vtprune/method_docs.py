"""Writes `docs/methods.md` from the registry: what each method is, needs and promises, and what was published of it."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from vtprune.budget import per_layer_tokens
from vtprune.costs import average_tokens
from vtprune.pruner import Pruner, Signal
from vtprune.registry import pruner_classes

PUBLISHED = Path(__file__).with_name("published.csv")
PAPER_TOKENS, PAPER_DEPTH = 576, 32

_BENCHMARKS = {
    "gqa": "GQA",
    "mmbench": "MMB",
    "mmbench_cn": "MMB-CN",
    "mme": "MME",
    "mme_perception": "MME (perception)",
    "pope": "POPE",
    "scienceqa": "SQA",
    "vqav2": "VQAv2",
    "textvqa": "TextVQA",
    "vizwiz": "VizWiz",
    "vizwiz_val": "VizWiz (val)",
    "retained": "average, % of full",
    "mean_of_nine": "mean of nine",
}
_SEES_THE_MODEL = {
    Signal.ENCODER_ATTENTION: "encoder attention",
    Signal.ENCODER_KEYS: "encoder keys",
    Signal.ENCODER_FEATURES: "encoder features",
    Signal.ENCODER_CLS: "encoder CLS token",
    Signal.ENCODER_LAYERS: "chosen encoder layers",
    Signal.IMAGE_HASH: "hash of the pixels",
    Signal.PIXELS: "pixels",
    Signal.CLIP_TEXT: "CLIP text tower",
    Signal.TEXT_EMBEDDINGS: "text embeddings",
    Signal.DECODER_ATTENTION: "decoder attention",
    Signal.DECODER_STATES: "decoder queries and keys",
    Signal.UNROTATED_STATES: "decoder queries and keys without rotary",
    Signal.NEXT_STATES: "queries and keys of the layer ahead",
    Signal.NEXT_UNROTATED_STATES: "those without rotary",
}
_HEAD = """\
# Methods

Written by `python -m vtprune.docs` from the registry; a test holds it to that. Layers are those for a decoder of
32 layers and an encoder of 24; methods whose layers are scaled to other depths say so among their options.

"Recorded" methods choose what their published code chose, on every case of the recorded outputs in `tests/goldens`.
The others are implemented from their papers' description alone, which leaves more room for error; baselines need no
authority. A method whose code differs from its paper follows what produced the published numbers, and says so below.
"""


@cache
def published() -> tuple[dict[str, str], ...]:
    """The published LLaVA-1.5-7B figures that are known, each row with its source."""
    with PUBLISHED.open(encoding="utf-8", newline="") as lines:
        return tuple(csv.DictReader(lines))


def methods_page() -> str:
    """The whole of `docs/methods.md`."""
    classes = pruner_classes()
    parts = [_HEAD, overview_table(), "## Budgets of published tables", _presets_text(), presets_table()]
    parts += ["## One by one", *(_section(cls) for cls in classes.values())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def overview_table() -> str:
    """One row for each registered method."""
    head = ("method", "where", "looks at", "question", "training", "budget", "positions", "evidence")
    anchors = _anchors(pruner_classes())
    rows = []
    for name, cls in pruner_classes().items():
        pruner = cls()
        rows.append(
            (
                f"[`{name}`](#{anchors[name]})",
                stage_text(pruner),
                ", ".join(_SEES_THE_MODEL[signal] for signal in sorted(cls.signals | cls.optional_signals))
                or "the tokens alone",
                "yes" if cls.query_aware else "no",
                "none" if cls.training_free else "needed",
                _count_text(pruner),
                cls.default_positions,
                _evidence(cls),
            )
        )
    return markdown_table(head, rows)


def stage_text(pruner: Pruner) -> str:
    """Where a method removes tokens."""
    parts = ["before the language model"] if 0 in pruner.layers else []
    layers = [layer for layer in dict.fromkeys(pruner.layers) if layer]
    names = [str(layer) for layer in layers]
    if len(layers) > 3 and layers == list(range(layers[0], layers[-1] + 1)):
        parts.append(f"before each of the decoder layers {names[0]} to {names[-1]}")
    elif layers:
        listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        parts.append(f"before decoder layer{'s' if len(names) > 1 else ''} {listed}")
    return "; ".join(parts)


def presets_table() -> str:
    """The literature's averages for each method that has them: tokens kept at the end, and both averages."""
    rows: list[tuple[str, ...]] = []
    for name, cls in pruner_classes().items():
        pruner = cls.with_presets()
        for average in sorted(cls.presets, reverse=True):
            keep = pruner.preset(average, PAPER_TOKENS, PAPER_DEPTH)
            assert keep is not None
            counts = pruner.schedule(PAPER_TOKENS, keep)
            means = [
                average_tokens(per_layer_tokens(pruner, PAPER_TOKENS, keep, PAPER_DEPTH, convention))
                for convention in ("nominal", "true")
            ]
            stages = ", ".join(str(layer) for layer in pruner.layers)
            row = (f"`{name}`", str(average), stages, ", ".join(map(str, counts)), *(f"{mean:.1f}" for mean in means))
            rows.append(row)
    return markdown_table(("method", "named", "before layers", "tokens left", "nominal average", "true average"), rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def linked(paper: str) -> str:
    """A paper's line with its arXiv number as a link."""
    return re.sub(r"arXiv (\d+\.\d+)", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def _presets_text() -> str:
    return (
        "What published tables call 192, 128 or 64 tokens is, for methods that prune inside the decoder, a mean over "
        "its layers; some count a layer that runs in full just before a removal with what is left (the nominal mean). "
        '`Budget(average=64, convention="nominal")`, in short `"nominal:64"`, gives exactly these settings for 576 '
        "tokens and 32 layers; the last column is what the layers really process. Sources: SparseVLM and SparseVLM+ "
        "the lists of the released code; FastV and EntropyPrune the formula of their tables; PyramidDrop and VScan the "
        "structure that their authors name for 64 tokens, solved for the others."
    )


def _section(cls: type[Pruner]) -> str:
    parts = [f"### {cls.name}", f"{linked(cls.paper)}. {_description(cls)}"]
    options = [
        (f"`{field.name}`", f"`{_default(field)}`", option_text(cls, field.name)) for field in dataclasses.fields(cls)
    ]
    if options:
        parts.append(markdown_table(("option", "default", "meaning"), options))
    if figures := _figures(cls.name):
        parts += ["Published for LLaVA-1.5-7B:", figures]
    return "\n\n".join(parts)


def _figures(name: str) -> str:
    """The published rows of a method, without the columns in which all are empty, and the full model for comparison."""
    own = [row for row in published() if row["method"] == name]
    if not own:
        return ""
    shown = [row for row in published() if not row["method"]] + own
    columns = [column for column in _BENCHMARKS if any(row[column] for row in own)]
    head = ("row", "tokens", *(_BENCHMARKS[column] for column in columns), "source")
    rows = [
        (
            row["row"],
            row["tokens"],
            *(row[column] for column in columns),
            "; ".join(part for part in (row["source"], row["note"]) if part),
        )
        for row in shown
    ]
    return markdown_table(head, rows)


def _count_text(pruner: Pruner) -> str:
    if pruner.schedule(PAPER_TOKENS, 1)[-1] == 0:
        return "none: drops every token"
    if type(pruner).attainable is not Pruner.attainable:
        return "the largest of its sizes"
    return "exact, or its own count" if pruner.is_adaptive else "exact"


def _evidence(cls: type[Pruner]) -> str:
    if cls.golden:
        return "recorded"
    return "baseline" if cls.paper.startswith("Baseline") else "paper alone"


def _anchors(names: Iterable[str]) -> dict[str, str]:
    """What a heading is linked by: signs are left out, and what is then said twice is numbered."""
    seen: dict[str, int] = {}
    anchors = {}
    for name in names:
        plain = re.sub(r"[^\w-]", "", name)
        anchors[name] = f"{plain}-{seen[plain]}" if plain in seen else plain
        seen[plain] = seen.get(plain, 0) + 1
    return anchors


def _description(cls: type[Pruner]) -> str:
    """The class docstring up to its sections, as one paragraph for each of its own."""
    text = inspect.getdoc(cls) or ""
    text = re.split(r"\n(?:Args|Raises|Example):\n", text)[0]
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def option_text(cls: type[Pruner], name: str) -> str:
    """What the docstring says of a field."""
    text = inspect.getdoc(cls) or ""
    arguments = re.search(r"\nArgs:\n(.*?)(?=\n\S|\Z)", text, re.DOTALL)
    found = re.search(
        rf"^    {name}: (.*?)(?=^    \w+: |\Z)", arguments[1] if arguments else "", re.DOTALL | re.MULTILINE
    )
    return " ".join(found[1].split()) if found else ""


def _default(field: dataclasses.Field[object]) -> str:
    return repr(field.default)
