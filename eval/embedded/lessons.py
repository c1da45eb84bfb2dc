"""The harder tasks: which pictures each shows and what it asks about them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vtprune.eval.embedded.levels import (
    Level,
    Pair,
    Split,
    compare_scenes,
    count_scene,
    detail_scene,
    ground_scene,
)
from vtprune.eval.embedded.scenes import COLORS, SHAPES, SIZE, Item, Question, Scene, all_questions

BOXES = 8
"""Grounding speaks of ``BOXES`` x ``BOXES`` boxes, by row and column from 1."""
MAX_COUNT = 9
"""The largest answer of a count question."""

_BOX = SIZE // BOXES
_BORDER = 3  # pixels between the centre of an object and the lines of its box
_APART = 12  # pixels that make one object left of or above another

Asked = dict[str, list[Question]]
"""By kind, every question that has one true answer."""


@dataclass(frozen=True)
class Lesson:
    """A task: its kinds of questions, its pictures for one prompt, and every question on them."""

    kinds: tuple[str, ...]
    draw: Callable[[random.Random, Level, Split], tuple[Scene, ...]]
    ask: Callable[[tuple[Scene, ...]], Asked]


def _detail(scenes: tuple[Scene, ...]) -> Asked:
    (scene,) = scenes
    asked = all_questions(scene, ("color", "shape", "number"))
    words = scene.word.text
    text = "which words are written ?" if " " in words else "which word is written ?"
    return asked | {"word": [Question("word", text, words)]}


def _count(scenes: tuple[Scene, ...]) -> Asked:
    items = scenes[0].items
    asked = {
        "shapes": [(f"how many {SHAPES[s]} are there ?", sum(i.shape == s for i in items)) for s in SHAPES],
        "colors": [(f"how many {c} objects are there ?", sum(i.color == c for i in items)) for c in COLORS],
        "pairs": [
            (f"how many {c} {SHAPES[s]} are there ?", sum((i.color, i.shape) == (c, s) for i in items))
            for c in COLORS
            for s in SHAPES
        ],
        "all": [("how many objects are there ?", len(items))],
    }
    return {
        kind: [Question(kind, text, str(n)) for text, n in numbers if n <= MAX_COUNT] for kind, numbers in asked.items()
    }


def box_of(item: Item) -> str | None:
    """Row and column of the object's box, or None when its centre is too near to a line."""
    if any(not _BORDER <= value % _BOX < _BOX - _BORDER for value in (item.x, item.y)):
        return None
    return f"{item.y // _BOX + 1} {item.x // _BOX + 1}"


def _touches(item: Item, box: str) -> bool:
    row, column = (int(number) - 1 for number in box.split())
    across = column * _BOX - item.radius <= item.x <= (column + 1) * _BOX + item.radius
    return across and row * _BOX - item.radius <= item.y <= (row + 1) * _BOX + item.radius


def _ground(scenes: tuple[Scene, ...]) -> Asked:
    items = scenes[0].items
    boxes = [(item, box) for item in items if (box := box_of(item)) is not None]
    sides = []
    for a, b in itertools.permutations(items, 2):
        for side, far in (("left", b.x - a.x), ("right", a.x - b.x), ("above", b.y - a.y), ("below", a.y - b.y)):
            if abs(far) >= _APART:
                relation = f"{side} of" if side in ("left", "right") else side
                text = f"is the {a.color} {a.shape} {relation} the {b.color} {b.shape} ?"
                sides.append(Question("side", text, "yes" if far > 0 else "no"))
    return {
        "box": [Question("box", f"in which box is the {i.color} {i.shape} ?", box) for i, box in boxes],
        "inbox": [
            Question("inbox", f"what is in box {box} ?", f"{i.color} {i.shape}")
            for i, box in boxes
            if sum(_touches(other, box) for other in items) == 1
        ],
        "side": sides,
    }


def _pairs(scene: Scene) -> list[Pair]:
    return [(item.color, item.shape) for item in scene.items]


def _compare(scenes: tuple[Scene, ...]) -> Asked:
    pairs = [_pairs(scene) for scene in scenes]
    which, color, more, change = [], [], [], []
    for here, there in ((0, 1), (1, 0)):
        alone = [pair for pair in dict.fromkeys(pairs[here]) if pair not in pairs[there]]
        name = f"picture {here + 1}"
        for c, s in alone:
            if pairs[here].count((c, s)) == 1:
                which.append(Question("which", f"in which picture is the {c} {s} ?", str(here + 1)))
        if len(alone) == 1:
            text = f"what is in {name} and not in picture {there + 1} ?"
            change.append(Question("change", text, " ".join(alone[0])))
        shapes = [s for _, s in pairs[here]]
        color += [
            Question("color", f"what color is the {s} in {name} ?", c) for c, s in pairs[here] if shapes.count(s) == 1
        ]
        other = [s for _, s in pairs[there]]
        for s in SHAPES:
            if shapes.count(s) > other.count(s):
                more.append(Question("more", f"in which picture are there more {SHAPES[s]} ?", str(here + 1)))
    same = "yes" if scenes[0].number.text == scenes[1].number.text else "no"
    number = Question("number", "is the number the same in picture 1 and picture 2 ?", same)
    read = [
        Question("read", f"which number is in picture {place} ?", " ".join(scene.number.text))
        for place, scene in enumerate(scenes, 1)
    ]
    return {"which": which, "color": color, "more": more, "number": [number], "read": read, "change": change}


LESSONS: dict[str, Lesson] = {
    "detail": Lesson(
        ("color", "shape", "number", "word"), lambda rng, level, split: (detail_scene(rng, level, split),), _detail
    ),
    "ground": Lesson(("box", "inbox", "side"), lambda rng, level, split: (ground_scene(rng, level, split),), _ground),
    "count": Lesson(
        ("shapes", "colors", "pairs", "all"), lambda rng, level, split: (count_scene(rng, level, split),), _count
    ),
    "compare": Lesson(("which", "color", "more", "number", "read", "change"), compare_scenes, _compare),
}
"""The tasks by name; ``vtprune_<name>`` in lmms-eval."""


def draw_questions(rng: random.Random, asked: Mapping[str, Sequence[Question]], limit: int) -> Iterator[Question]:
    """Up to ``limit`` different questions, kinds in turn and answers as evenly as there are questions for them."""
    left = {kind: list(questions) for kind, questions in asked.items() if questions}
    drawn = 0
    while left and drawn < limit:
        for kind in rng.sample(list(left), min(len(left), limit - drawn)):
            answer = rng.choice(list({question.answer: None for question in left[kind]}))
            question = rng.choice([question for question in left[kind] if question.answer == answer])
            left[kind].remove(question)
            if not left[kind]:
                del left[kind]
            drawn += 1
            yield question


def describe(scene: Scene, rng: random.Random, *, full: bool, limit: int) -> str:
    """A caption of at most ``limit`` words: as much of the scene as fits, or one to four things in it."""
    parts = [f"a {item.color} {item.shape}" for item in scene.items]
    parts += [f"the number {' '.join(scene.number.text)}"] * bool(scene.number.text)
    parts += [f"the word {scene.word.text}"] * bool(scene.word.text)
    rng.shuffle(parts)
    if not full:
        parts = parts[: rng.randint(2, 4) if rng.random() < 0.4 else 1]
    text = parts[0] if parts else "a picture"
    for part in parts[1:]:
        longer = f"{text} , {part}"
        if len(longer.split()) <= limit:
            text = longer
    return text
