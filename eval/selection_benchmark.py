"""How long selections take, the published loops against vtprune's: ``python -m vtprune.eval.selection_benchmark``.

A model with random weights and a published model's sizes runs one prefill with each method. What its stages saw is then
handed to vtprune's selection, as it is and recorded in a CUDA graph, and, picture by picture, to the published
selection as `vtprune.eval.official` rewrites it. All start at the queries, keys and features that the model has
computed anyway; norms, projections and rotary of a layer ahead of a stage count for neither. All stages of a method are
added up. All run in turns in one process, warmed up and synchronised; medians and the middle half of the runs are
reported.

Where the published code gathers the sequence along with its selection, so does its loop here. Published methods whose
count follows from thresholds are set to come near the budget.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import vtprune
from vtprune.budget import Budget
from vtprune.engine.capture import Pool, Recorded
from vtprune.engine.engine import Engine
from vtprune.engine.stage_context import StageContext
from vtprune.eval.official.calls import OFFICIAL, Seen
from vtprune.eval.profile import machine
from vtprune.eval.profile_markdown import markdown_table
from vtprune.eval.profiling import attached, engine_of
from vtprune.eval.random_models import (
    ARCHITECTURES,
    random_model,
    random_prompts,
    random_text_tower,
    word_tokenizer,
)
from vtprune.eval.timing import Timing, time_in_turns
from vtprune.pruner import Pruner, Signal
from vtprune.text_tower import TextTower

TEXT_TOKENS = 60
LIMIT = 2.0
"""Seconds of timed runs after which a selection is not repeated."""

_MODELS = {576: "llava-1.5-7b", 2880: "llava-next-7b"}
_towers: dict[tuple[torch.device, int], TextTower] = {}


@dataclass(frozen=True)
class Row:
    """One method at one batch size; milliseconds of all its stages.

    Args:
        method: Its name.
        batch: Prompts, one picture each.
        tokens: Visual tokens of a picture before pruning.
        keep: Visual tokens of a picture that stay.
        stages: How many there are.
        official: The published loop, one picture after another.
        eager: vtprune's selection.
        captured: The same replayed from a CUDA graph.
        notes: Why something is missing.
    """

    method: str
    batch: int
    tokens: int
    keep: int
    stages: int
    official: Timing | None
    eager: Timing | None
    captured: Timing | None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times the published loop takes the better of vtprune's times."""
        times = [timing.median for timing in (self.eager, self.captured) if timing is not None]
        return self.official.median / min(times) if self.official is not None and times else None


class Selection:
    """What the stages of a method saw in one prefill.

    Args:
        model: A model, not wrapped.
        pruner: The method.
        inputs: Prompts of one picture each.
        keep: Tokens of a picture that stay.

    Raises:
        ValueError: Method, budget and model do not go together.
    """

    def __init__(self, model: Any, pruner: Pruner, inputs: dict[str, Any], keep: int) -> None:
        options: dict[str, Any] = {"images_per_prompt": 1}
        if Signal.CLIP_TEXT in pruner.signals:
            options |= {"text_tower": _text_tower(model), "processor": word_tokenizer()}
        engine = engine_of(model, pruner, Budget(keep), **options)
        self.pruner = engine.pruner
        self.batch: int = inputs["input_ids"].shape[0]
        self.seen = _seen(engine, lambda: model(**inputs, use_cache=True, logits_to_keep=1))
        assert engine.last_report is not None
        self.tokens = engine.last_report.visual_tokens // self.batch
        self.left = self.seen[-1][1] if self.seen else self.tokens

    def choose(self) -> list[Any]:
        """Runs vtprune's selection anew at all stages: signals that it derives are derived again."""
        return [self.pruner.reduce(anew(context), keep) for context, keep in self.seen]

    def official(self) -> Callable[[], list[list[Any]]]:
        """The published selection of all pictures, one after another; what it is called with is made here.

        Raises:
            ValueError: There is none: no code was published, or the method is a baseline.
        """
        if self.pruner.name not in OFFICIAL:
            raise ValueError("no published loop")
        contexts = [(anew(context), keep) for context, keep in self.seen]
        make = OFFICIAL[self.pruner.name]
        calls = [
            make([Seen(self.pruner, context, image, keep) for context, keep in contexts]) for image in range(self.batch)
        ]
        return lambda: [call() for call in calls]


def _text_tower(model: Any) -> TextTower:
    """A tower for all models of one vision width on one device, which takes its time to be made."""
    key = model.device, model.config.vision_config.hidden_size
    if key not in _towers:
        _towers[key] = random_text_tower(model)
    return _towers[key]


def anew(context: StageContext) -> StageContext:
    """A context that has derived nothing yet; what the model computed it shares with the one that is given."""
    fresh = copy.copy(context)
    fresh._record = dataclasses.replace(context._record)
    return fresh


def _seen(engine: Engine, prefill: Callable[[], object]) -> list[tuple[StageContext, int]]:
    """What a method is asked for in a prefill: contexts as they were before it looked at them, and numbers to keep."""
    pruner, seen = engine.pruner, []
    original = pruner.reduce

    def reduce(context: Any, keep: int) -> Any:
        seen.append((anew(context), keep))
        return original(context, keep)

    # Into the instance and past its being frozen: a class of its own would be another method to the engine.
    pruner.__dict__["reduce"] = reduce
    try:
        with attached(engine):
            prefill()
    finally:
        del pruner.__dict__["reduce"]
    return seen


@torch.no_grad()
def measure(
    model: Any, pruner: Pruner, inputs: dict[str, Any], keep: int, *, repeats: int = 20, warmup: int = 3
) -> Row:
    """Times one method's selections.

    Args:
        model: A model, not wrapped.
        pruner: The method.
        inputs: Prompts of one picture each.
        keep: Tokens of a picture that stay.
        repeats: Timed rounds; fewer of what takes longer than `LIMIT` in all.
        warmup: Rounds before them.
    """
    name, batch = pruner.name, inputs["input_ids"].shape[0]
    notes: dict[str, str] = {}
    times: dict[str, Timing] = {}
    tokens, left, stages = 0, keep, 0
    with _noting(notes, "prefill"):
        selection = Selection(model, pruner, inputs, keep)
        tokens, left, stages = selection.tokens, selection.left, len(selection.seen)
        runs: dict[str, Callable[[], object]] = {}
        with _noting(notes, "official"):
            official = selection.official()
            official()
            runs["official"] = official
        with _noting(notes, "eager"):
            selection.choose()
            runs["eager"] = selection.choose
        if model.device.type == "cuda" and "eager" in runs:
            with _noting(notes, "captured"):
                runs["captured"] = Recorded(selection.choose, Pool()).replay
        times = time_in_turns(runs, model.device, repeats=repeats, warmup=warmup, limit=LIMIT)
    return Row(
        method=name,
        batch=batch,
        tokens=tokens,
        keep=left,
        stages=stages,
        official=times.get("official"),
        eager=times.get("eager"),
        captured=times.get("captured"),
        notes=notes,
    )


@contextmanager
def _noting(notes: dict[str, str], name: str) -> Iterator[None]:
    """Writes down why something could not be measured, and lets the rest go on."""
    try:
        yield
    except Exception as error:  # whatever a loop does on sizes it was not written for, or a graph that cannot be
        notes[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def parse_methods(words: str) -> list[str]:
    """Names separated by commas; `all` for every method, with a published loop or without.

    Raises:
        ValueError: No such method.
    """
    if words == "all":
        return vtprune.list_pruners()
    names = words.split(",")
    for name in names:
        vtprune.pruner_class(name)
    return names


def parse_sizes(words: str) -> list[tuple[int, int]]:
    """Pairs such as `576:64` separated by commas: tokens before and after.

    Raises:
        ValueError: No such pair, or tokens that no model here makes.
    """
    pairs = []
    for word in words.split(","):
        before, colon, after = word.partition(":")
        if not (colon and before.isdigit() and after.isdigit()):
            raise ValueError(f"{word!r} is no size; write tokens before and after, such as 576:64")
        if int(before) not in _MODELS or not 0 < int(after) < int(before):
            raise ValueError(f"{word!r} cannot be measured; tokens before are {' or '.join(map(str, _MODELS))}")
        pairs.append((int(before), int(after)))
    return pairs


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows for people."""
    found = Table(title=title)
    for column in ("method", "batch", "tokens", "stages", "official", "eager", "captured", "official / best"):
        found.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        times = ("-" if timing is None else str(timing) for timing in (row.official, row.eager, row.captured))
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f} x"
        found.add_row(row.method, str(row.batch), f"{row.tokens} -> {row.keep}", str(row.stages), *times, ratio)
    return found


def to_markdown(rows: Sequence[Row], unpruned: float | None) -> str:
    """The rows for documents, fastest first.

    Args:
        rows: The rows.
        unpruned: Milliseconds of the unpruned prefill, for the share that a selection is of it.
    """
    columns = ["method", "batch", "tokens", "stages", "official", "eager", "graph", "share", "official / vtprune"]
    timed = [(best, row) for row in rows if (best := row.captured or row.eager) is not None]
    lines = []
    for best, row in sorted(timed, key=lambda pair: (pair[1].tokens, pair[1].batch, pair[0].median)):
        times = ("-" if timing is None else str(timing) for timing in (row.official, row.eager, row.captured))
        share = "-" if unpruned is None else f"{100 * best.median / unpruned:.1f} %"
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f} x"
        sizes = (str(row.batch), f"{row.tokens} -> {row.keep}", str(row.stages))
        lines.append([f"`{row.method}`", *sizes, *times, share, ratio])
    return markdown_table(columns, lines, ["method"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", default="all", help="names, separated by commas, or 'all'")
    parser.add_argument("--sizes", default="576:64,576:192,2880:320,2880:640", help="tokens before and after")
    parser.add_argument("--batches", default="1,8", help="batch sizes, separated by commas")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--layers", type=int, help="decoder layers of the models; all of them by default")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there, in Markdown")
    parser.add_argument("--unpruned", type=float, metavar="MS", help="the unpruned prefill, for shares in --markdown")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there, after each one")
    options = parser.parse_args(arguments)
    names, sizes = parse_methods(options.methods), parse_sizes(options.sizes)
    batches = [int(batch) for batch in options.batches.split(",")]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    console, where, rows = Console(width=160), machine(device), []
    for before in dict.fromkeys(before for before, _ in sizes):
        model: Any = random_model(_MODELS[before], device, dtype, layers=options.layers)
        for batch in batches:
            pixels = ARCHITECTURES[_MODELS[before]].pixels(batch, device, dtype)
            inputs = random_prompts(model, batch, TEXT_TOKENS, pixels)
            for keep in (after for size, after in sizes if size == before):
                for name in names:
                    row = measure(model, vtprune.make_pruner(name), inputs, keep, repeats=options.repeats)
                    rows.append(row)
                    for what, reason in row.notes.items():
                        console.print(f"{name}, {before}:{keep}, batch {batch}, {what}: {reason}", markup=False)
                    if options.json:
                        data = {"machine": where, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
                        Path(options.json).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
                    gc.collect()
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.markdown:
        Path(options.markdown).write_text(to_markdown(rows, options.unpruned), encoding="utf-8")
    console.print(table(rows, f"Selection alone, ms: median (quartiles), {dtype}, {where['device']}"))


if __name__ == "__main__":
    main()
