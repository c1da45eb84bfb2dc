"""Questions on which methods disagree, with their pictures and what each method kept of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vtprune.eval.analysis import Entry, Section
from vtprune.eval.models import resolve_name
from vtprune.eval.pictures import seen_picture
from vtprune.eval.retained import task_name
from vtprune.eval.vtc import RIGHT
from vtprune.registry import pruner_class

if TYPE_CHECKING:
    from vtprune.eval.harness import TaskBook

MOST = 12
"""Examples of a report."""

_METHODS = 8
_PIXELS = 384
_QUESTION = 600


@dataclass(frozen=True)
class Look:
    """One method's answer.

    Args:
        name: The method.
        answer: What the model said.
        is_right: Whether the task takes it for right.
        dropped: For each picture an SVG path over the dropped cells; `None` where that is not known, and for methods
            that make new tokens, which drop nothing altogether.
        left: The same around the cells that were kept, or in whose place new tokens stand.
        kept: For each picture how many tokens were kept, as far as that is known.
    """

    name: str
    answer: str
    is_right: bool
    dropped: list[str | None]
    left: list[str | None]
    kept: list[int | None]


@dataclass(frozen=True)
class Example:
    """One question.

    Args:
        where: Model, task and budget.
        kind: Of question, if it has one.
        question: What was asked.
        target: The right answer.
        pictures: As data addresses.
        sizes: Width and height of each.
        grids: Rows and columns of each picture's tokens, where they are known.
        looks: The full model's answer first.
        others: How many more methods were right, and how many wrong.
    """

    where: str
    kind: str | None
    question: str
    target: str
    pictures: list[str]
    sizes: list[tuple[int, int]]
    grids: list[tuple[int, int] | None]
    looks: list[Look]
    others: tuple[int, int]


def find_examples(
    sections: Sequence[Section], include: Sequence[Path] = (), count: int = MOST
) -> tuple[list[Example], list[str]]:
    """The examples, shared out among the sections, and for each section without pictures the reason."""
    from vtprune.eval.harness import TaskBook

    tasks = TaskBook(include)
    found: list[Example] = []
    reasons: list[str] = []
    useful = [section for section in sections if section.pruned and section.score_metric is not None]
    for place, section in enumerate(useful):
        share = -(-(count - len(found)) // (len(useful) - place))
        chosen = choose(section, share)
        if not chosen:
            continue
        try:
            found += _examples(section, chosen, tasks)
        except Exception as error:  # whatever reading a data set may end in
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            reasons.append(f"No pictures of {section.task}: {told}")
    return found, reasons


def choose(section: Section, count: int) -> list[Hashable]:
    """Questions on which methods disagree most, of each kind in turn; the full model, if known, is right on them."""
    entries = compared(section)
    known = section.full.scores if section.full is not None else {}
    votes: dict[Hashable, float] = {}
    for question in entries[0].scores if entries else ():
        scores = [entry.scores[question] for entry in entries if question in entry.scores]
        right = sum(score >= RIGHT for score in scores) / len(scores)
        if 0 < right < 1 and known.get(question, 1.0) >= RIGHT:
            votes[question] = right * (1 - right)
    by_kind: dict[str | None, list[Hashable]] = {}
    for question in sorted(votes, key=lambda question: -votes[question]):
        by_kind.setdefault(section.questions.kinds.get(question), []).append(question)
    turns = [(place, kind) for kind, questions in by_kind.items() for place in range(len(questions))]
    order = {kind: number for number, kind in enumerate(by_kind)}
    turns.sort(key=lambda turn: (turn[0], order[turn[1]]))
    return [by_kind[kind][place] for place, kind in turns[:count]]


def compared(section: Section) -> list[Entry]:
    """The entries of the budget with most of them, the smallest of these."""
    of_budget: dict[str, list[Entry]] = {}
    for entry in section.pruned:
        if entry.scores:
            of_budget.setdefault(entry.budget, []).append(entry)
    return min(
        of_budget.values(),
        key=lambda entries: (-len(entries), min(entry.average_tokens for entry in entries)),
        default=[],
    )


def _examples(section: Section, questions: Sequence[Hashable], tasks: TaskBook) -> list[Example]:
    from vtprune.eval.harness import quiet

    task_digest = section.record.get("task_digest")
    tasks.resolve([section.task])
    if task_digest is not None and tasks.digest(section.task) != task_digest:
        raise ValueError("its files have changed since the sweep")
    with quiet():
        task = tasks.load(section.task)
    entries = [*([section.full] if section.full is not None else []), *compared(section)]
    samples = {entry.name: _samples(entry, set(questions)) for entry in entries}
    show = _as_seen(section.model)
    found = []
    for question in questions:
        doc = task.eval_docs[question]
        pictures = [picture for picture in task.doc_to_visual(doc) or [] if isinstance(picture, Image.Image)]
        if not pictures:
            raise ValueError("its questions have no still pictures")
        seen = [show(picture) for picture in pictures]
        shown, others = _shown(section, entries, question)
        first = samples[shown[0].name][question]
        found.append(
            Example(
                f"{section.model_name} on {task_name(section)}, {compared(section)[0].budget}",
                section.questions.kinds.get(question),
                str(task.doc_to_text(doc)).strip()[:_QUESTION],
                _text(first.get("target")),
                [_data_address(picture) for picture in seen],
                [picture.size for picture in seen],
                _grids([samples[entry.name][question] for entry in shown], len(pictures)),
                [_look(entry, samples[entry.name][question], question, len(pictures)) for entry in shown],
                others,
            )
        )
    return found


def _samples(entry: Entry, questions: set[Hashable]) -> dict[Hashable, dict[str, Any]]:
    return {s["doc_id"]: s for s in entry.runs[0].samples() if s["doc_id"] in questions}


def _shown(section: Section, entries: Sequence[Entry], question: Hashable) -> tuple[list[Entry], tuple[int, int]]:
    """The full model, and methods that are right and wrong in turns; how many right and wrong ones are left out."""
    full = [entry for entry in entries if entry.is_full]
    # What a method that draws answered with its first seed is shown, so that also decides whether it was right.
    asked = [entry for entry in entries if not entry.is_full and question in entry.runs[0].scores]
    right = [entry for entry in asked if entry.runs[0].scores[question] >= RIGHT]
    wrong = [entry for entry in asked if entry.runs[0].scores[question] < RIGHT]
    few = min(len(right), max(_METHODS // 2, _METHODS - len(wrong)))
    kept_right, kept_wrong = right[:few], wrong[: _METHODS - few]
    chosen = [entry for entry in asked if entry in kept_right or entry in kept_wrong]
    return [*full, *chosen], (len(right) - len(kept_right), len(wrong) - len(kept_wrong))


def _look(entry: Entry, sample: dict[str, Any], question: Hashable, pictures: int) -> Look:
    grids = _grids([sample], pictures)
    kept: list[Any] = list(sample.get("kept") or [])
    kept = kept if len(kept) == pictures else [None] * pictures
    merges = not entry.is_full and _makes_new_tokens(entry)
    return Look(
        entry.label if not entry.is_full else "full model",
        _text(sample.get("answer")),
        entry.runs[0].scores[question] >= RIGHT,
        [
            None if tokens is None or grid is None or merges else dropped_cells(grid, tokens)
            for tokens, grid in zip(kept, grids, strict=True)
        ],
        [
            None if tokens is None or grid is None or len(tokens) == grid[0] * grid[1] else kept_cells(grid, tokens)
            for tokens, grid in zip(kept, grids, strict=True)
        ],
        [None if tokens is None else len(tokens) for tokens in kept],
    )


def _makes_new_tokens(entry: Entry) -> bool:
    try:
        return any(pruner_class(name).merges for name in entry.pruner.split("/"))
    except ValueError:  # a method of a package that is not installed here
        return False


def dropped_cells(grid: tuple[int, int], kept: Sequence[int]) -> str:
    """An SVG path over the cells that were not kept, a unit a cell; runs of a row are one rectangle.

    Example:
        >>> dropped_cells((1, 4), [1])
        'M0 0h1v1h-1zM2 0h2v1h-2z'
    """
    rows, columns = grid
    alive = set(kept)
    parts = []
    for row in range(rows):
        column = 0
        while column < columns:
            start = column
            while column < columns and row * columns + column not in alive:
                column += 1
            if column > start:
                parts.append(f"M{start} {row}h{column - start}v1h-{column - start}z")
            column += 1
    return "".join(parts)


def kept_cells(grid: tuple[int, int], kept: Sequence[int]) -> str:
    """An SVG path around each cell that was kept.

    Example:
        >>> kept_cells((1, 4), [1])
        'M1 0h1v1h-1z'
    """
    columns = grid[1]
    return "".join(f"M{token % columns} {token // columns}h1v1h-1z" for token in kept)


def _grids(samples: Sequence[dict[str, Any]], pictures: int) -> list[tuple[int, int] | None]:
    for sample in samples:
        grids = sample.get("grid")
        if grids and len(grids) == pictures:
            return [None if grid is None else (int(grid[0]), int(grid[1])) for grid in grids]
    return [None] * pictures


def _as_seen(model: str) -> Callable[[Image.Image], Image.Image]:
    """Cuts pictures to what the encoder sees of them, so that cells lie where they belong; without network.

    Models of several views look at the whole picture too, which is what their base grid covers.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(resolve_name(model), local_files_only=True)
    except Exception:  # not on this machine
        return lambda picture: picture

    def show(picture: Image.Image) -> Image.Image:
        try:
            inputs = processor.image_processor(images=[picture.convert("RGB")], return_tensors="pt")
        except Exception:  # needs more than a picture
            return picture
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dim() != 4 or len(pixels) != 1:
            return picture
        return seen_picture(inputs, processor) or picture

    return show


def _data_address(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_PIXELS, _PIXELS))
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(map(_text, value)))
    return str(value)[:_QUESTION]
