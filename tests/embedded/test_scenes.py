"""The generator of pictures and questions, and the held-out set."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter

import numpy as np
import pytest

from vtprune.eval.embedded import load_questions
from vtprune.eval.embedded.heldout import PER_KIND, choose_questions
from vtprune.eval.embedded.scenes import (
    CHARACTERS,
    COLORS,
    GRID,
    KINDS,
    LABELS,
    PATCH,
    SHAPES,
    SIZE,
    Item,
    Question,
    Scene,
    all_questions,
    caption,
    patch_labels,
    questions,
    render,
    sample_scene,
)
from vtprune.eval.embedded.vocabulary import SUFFIX, TOKENS, encode

SCENES = [sample_scene(random.Random(seed)) for seed in range(40)]


def true_answer(question: str, scene: Scene) -> str:
    """The answer read off the scene by another way than the generator's."""
    words = question.split()
    singular = {plural: shape for shape, plural in SHAPES.items()}
    match words[:2]:
        case ["what", "color"]:
            (item,) = (item for item in scene.items if item.shape == words[4])
            return item.color
        case ["what", "shape"]:
            (item,) = (item for item in scene.items if item.color == words[4])
            return item.shape
        case ["is", "there"]:
            return "yes" if words[3:5] in [[item.color, item.shape] for item in scene.items] else "no"
        case ["how", "many"]:
            return str(Counter(item.shape for item in scene.items)[singular[words[2]]])
        case ["which", "number"]:
            return " ".join(scene.number.text)
        case ["which", "word"]:
            return scene.word.text
        case ["where", "is"]:
            (item,) = (item for item in scene.items if item.shape == words[3])
            row = ["top", "middle", "bottom"][(item.y >= 64) + (item.y >= 128)]
            return f"{row} {['left', 'center', 'right'][(item.x >= 64) + (item.x >= 128)]}"
    raise AssertionError(question)


def test_pictures_are_deterministic_and_differ() -> None:
    pictures = [np.asarray(render(scene)) for scene in SCENES[:8]]
    for scene, picture in zip(SCENES, pictures, strict=False):
        assert picture.shape == (SIZE, SIZE, 3)
        np.testing.assert_array_equal(picture, np.asarray(render(scene)))
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_scenes_survive_json() -> None:
    for scene in SCENES:
        again = Scene.from_json(json.loads(json.dumps(scene.to_json())))
        assert again == scene
        assert hash(again) == hash(scene)


def test_every_answer_is_true() -> None:
    seen: Counter[str] = Counter()
    for scene in SCENES:
        for kind, asked in all_questions(scene).items():
            for question in asked:
                assert question.kind == kind
                assert question.answer == true_answer(question.text, scene), question
                seen[kind] += 1
    assert set(seen) == set(KINDS)


def test_objects_lie_inside_and_apart() -> None:
    for scene in SCENES:
        boxes = [(i.x - i.radius, i.y - i.radius, i.x + i.radius, i.y + i.radius) for i in scene.items]
        boxes += [scene.number.box, scene.word.box]
        for left, top, right, bottom in boxes:
            assert min(left, top) >= 0
            assert max(right, bottom) <= SIZE
        for n, a in enumerate(boxes):
            for b in boxes[:n]:
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_where_is_asked_only_away_from_the_cell_borders() -> None:
    base = SCENES[0]
    for x, asked in ((10, True), (57, False), (64, False), (71, False), (72, True), (128, False)):
        scene = dataclasses.replace(base, items=(Item("star", "red", x, 30, 9),))
        assert bool(all_questions(scene)["where"]) is asked, x


def test_drawn_questions_are_distinct_and_cover_the_kinds() -> None:
    answers: Counter[str] = Counter()
    for seed in range(200):
        scene = sample_scene(random.Random(f"draw/{seed}"))
        drawn = questions(scene, random.Random(seed), limit=12)
        assert len(drawn) == len({question.text for question in drawn}) == 12
        assert {"exist", "count", "number", "word"} <= {question.kind for question in drawn}
        answers.update(question.answer for question in drawn if question.kind == "exist")
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_the_vocabulary_covers_everything() -> None:
    assert len(set(TOKENS)) == len(TOKENS) < 256
    for scene in SCENES:
        for asked in all_questions(scene).values():
            for question in asked:
                encode(f"{question.text} {SUFFIX} {question.answer}")
        for full in (True, False):
            encode(caption(scene, random.Random(0), full=full))


def test_a_full_caption_names_everything() -> None:
    for scene in SCENES:
        parts = caption(scene, random.Random(1)).split(" , ")
        assert len(parts) == len(scene.items) + 2
        assert all(f"a {item.color} {item.shape}" in parts for item in scene.items)
        assert f"the word {scene.word.text}" in parts


def test_patch_labels_match_the_picture() -> None:
    for scene in SCENES[:10]:
        labels = patch_labels(scene)
        assert labels.shape == (len(LABELS), GRID, GRID)
        picture = np.asarray(render(scene)).reshape(GRID, PATCH, GRID, PATCH, 3)
        of_object = labels[0] > 0
        for channel in (1, 3, 4):
            np.testing.assert_array_equal(labels[channel] > 0, of_object)
        for row, column in np.argwhere(of_object):
            color = list(COLORS.values())[labels[1, row, column] - 1]
            assert (picture[row, :, column] == color).all(-1).sum() >= PATCH * PATCH // 8
            centers = [(i.y // PATCH + 1, i.x // PATCH + 1) for i in scene.items]
            assert tuple(labels[3:, row, column]) in centers
        written = {CHARACTERS[label - 1] for label in labels[2][labels[2] > 0]}
        assert written == set(scene.number.text + scene.word.text)


def test_an_unknown_shape_is_named() -> None:
    scene = dataclasses.replace(SCENES[0], items=(Item("blob", "red", 50, 50, 9),))
    with pytest.raises(ValueError, match="unknown shape 'blob'; known: circle"):
        render(scene)


def test_held_out_questions_are_balanced_and_true() -> None:
    held_out = load_questions()
    assert len(held_out) == len({question.id for question in held_out}) == PER_KIND * len(KINDS) == 420
    assert Counter(question.kind for question in held_out) == dict.fromkeys(KINDS, PER_KIND)
    assert len({question.scene for question in held_out}) == 420
    most = {"color": 8, "shape": 8, "exist": 30, "count": 12, "number": 2, "word": 2, "where": 8}
    for kind in KINDS:
        asked = [question for question in held_out if question.kind == kind]
        assert max(Counter(question.answer for question in asked).values()) <= most[kind]
    for question in held_out:
        assert question.answer == true_answer(question.question, question.scene)
        assert (
            Question(question.kind, question.question, question.answer) in all_questions(question.scene)[question.kind]
        )
    assert render(held_out[0].scene).size == (SIZE, SIZE)


def test_the_file_is_what_the_chooser_writes() -> None:
    chosen = choose_questions()
    assert [next(chosen) for _ in range(21)] == load_questions()[:21]
