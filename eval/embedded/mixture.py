"""Training examples of old and new tasks together: single pictures with a dozen questions, and pairs of pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np

from vtprune.eval.embedded.feed import CAPTION_LENGTH, Arrays, Form, fill_example, write_captions, write_questions
from vtprune.eval.embedded.lessons import LESSONS, describe, draw_questions
from vtprune.eval.embedded.levels import LEVELS
from vtprune.eval.embedded.scenes import GRID, KINDS, LABELS, SIZE, Question, all_questions, patch_labels, render
from vtprune.eval.embedded.scenes import sample_scene as plain_scene

PLAIN = "scenes"
LENGTH = 16
"""Token places of a question with its answer."""
SINGLE_QUESTIONS, PAIR_QUESTIONS = 12, 8

ALL_KINDS: tuple[str, ...] = (
    *(f"{PLAIN}/{kind}" for kind in KINDS),
    *(f"{name}/{kind}" for name, lesson in LESSONS.items() for kind in lesson.kinds),
)
"""Kinds of all tasks; the place is the number in ``Batch.kinds``."""

_SHARES = {PLAIN: 0.2, "detail": 0.2, "ground": 0.15, "count": 0.45}  # counting takes longest to learn
_ALSO = ("exist", "count", "where")  # of old kinds, asked of small objects too
_CAPTION_WORDS = CAPTION_LENGTH - 2  # without <s> and </s>


def draw_single(arrays: Arrays, row: int, rng: random.Random) -> None:
    """A picture of any of the tasks that show one."""
    (name,) = rng.choices(list(_SHARES), list(_SHARES.values()))
    if name == PLAIN:
        fill_example(arrays, row, plain_scene(rng), rng)
        return
    lesson = LESSONS[name]
    scenes = lesson.draw(rng, LEVELS[rng.choice(list(LEVELS))], "training")
    (scene,) = scenes
    arrays["pictures"][row] = np.asarray(render(scene))
    arrays["labels"][row] = patch_labels(scene)
    asked = lesson.ask(scenes)
    old = all_questions(scene, _ALSO) if name == "detail" else {}
    drawn = list(draw_questions(rng, asked | old, SINGLE_QUESTIONS))
    _write(arrays, row, name, drawn, rng)
    question = rng.choice(drawn)
    partial = f"{question.text} {question.answer}" if rng.random() < 0.5 else question.text
    if rng.random() < 0.7:
        partial = describe(scene, rng, full=False, limit=_CAPTION_WORDS)
    write_captions(arrays, row, (describe(scene, rng, full=True, limit=_CAPTION_WORDS), partial))


def draw_pair(arrays: Arrays, row: int, rng: random.Random) -> None:
    """Two pictures and questions that compare them."""
    lesson = LESSONS["compare"]
    scenes = lesson.draw(rng, LEVELS[rng.choice(list(LEVELS))], "training")
    for place, scene in enumerate(scenes):
        arrays["pictures"][row, place] = np.asarray(render(scene))
    _write(arrays, row, "compare", draw_questions(rng, lesson.ask(scenes), PAIR_QUESTIONS), rng)


def _write(arrays: Arrays, row: int, name: str, drawn: Iterable[Question], rng: random.Random) -> None:
    """Questions in random order: the kinds come in turns."""
    own = LESSONS[name].kinds

    def number(question: Question) -> int:
        task = name if question.kind in own else PLAIN
        return ALL_KINDS.index(f"{task}/{question.kind}")

    drawn = list(drawn)
    rng.shuffle(drawn)
    write_questions(arrays, row, drawn, number)


def _asked(count: int) -> dict[str, tuple[int, ...]]:
    return {"questions": (count, LENGTH), "starts": (count,), "kinds": (count,)}


SINGLES = Form(
    {
        "pictures": (SIZE, SIZE, 3),
        "labels": (len(LABELS), GRID, GRID),
        **_asked(SINGLE_QUESTIONS),
        "captions": (2, CAPTION_LENGTH),
    },
    draw_single,
)
PAIRS = Form(
    {"pictures": (2, SIZE, SIZE, 3), "labels": (0,), **_asked(PAIR_QUESTIONS), "captions": (0,)},
    draw_pair,
)
"""Without labels and captions: the tower sees the same things in single pictures."""
