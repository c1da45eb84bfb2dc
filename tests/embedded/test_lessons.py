"""The tasks with levels: that answers are true, pictures harder by level, and the held-out files what they were."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vtprune.eval.embedded import question_sets
from vtprune.eval.embedded.feed import Form, example_arrays
from vtprune.eval.embedded.lessons import LESSONS, describe, draw_questions
from vtprune.eval.embedded.levels import LEVELS, LONG_WORDS, PAIRS, Pair, is_held_out
from vtprune.eval.embedded.mixture import ALL_KINDS, LENGTH
from vtprune.eval.embedded.mixture import PAIRS as PAIR_FORM
from vtprune.eval.embedded.mixture import SINGLES as SINGLE_FORM
from vtprune.eval.embedded.question_sets import PER_LEVEL, TaskQuestion, check, choose, question_file, read_task, unpack
from vtprune.eval.embedded.scenes import SHAPES, SIZE, Item, Scene, patch_labels, render
from vtprune.eval.embedded.vocabulary import EOS, SUFFIX, TOKENS, encode

SINGULAR = {plural: shape for shape, plural in SHAPES.items()}
ASKED = {task: read_task(task) for task in LESSONS}
EVERYTHING = [question for asked in ASKED.values() for question in asked]


def where(scene: Scene, pair: Pair) -> tuple[int, int]:
    """Centre of the one object of this colour and shape."""
    (item,) = (item for item in scene.items if (item.color, item.shape) == pair)
    return item.x, item.y


def pairs(scene: Scene) -> list[Pair]:
    return [(item.color, item.shape) for item in scene.items]


def true_answer(question: str, scenes: tuple[Scene, ...]) -> str:
    """The answer read off the scenes by another way than the generator's."""
    words = question.split()
    scene = scenes[0]
    match words:
        case ["what", "color", "is", "the", shape, "?"]:
            (color,) = (color for color, other in pairs(scene) if other == shape)
            return color
        case ["what", "shape", "is", "the", color, "one", "?"]:
            (shape,) = (shape for other, shape in pairs(scene) if other == color)
            return shape
        case ["which", "number", "is", "written", "?"]:
            return " ".join(scene.number.text)
        case ["which", "word", "is", "written", "?"] | ["which", "words", "are", "written", "?"]:
            assert len(scene.word.text.split()) == (2 if "words" in words else 1)
            return scene.word.text
        case ["how", "many", "objects", *_]:
            return str(len(scene.items))
        case ["how", "many", color, "objects", *_]:
            return str(sum(color == other for other, _ in pairs(scene)))
        case ["how", "many", shapes, "are", "there", "?"]:
            return str(sum(SINGULAR[shapes] == shape for _, shape in pairs(scene)))
        case ["how", "many", color, shapes, *_]:
            return str(pairs(scene).count((color, SINGULAR[shapes])))
        case ["in", "which", "box", "is", "the", color, shape, "?"]:
            x, y = where(scene, (color, shape))
            return f"{8 * y // SIZE + 1} {8 * x // SIZE + 1}"
        case ["what", "is", "in", "box", row, column, "?"]:
            (item,) = (i for i in scene.items if (8 * i.y // SIZE, 8 * i.x // SIZE) == (int(row) - 1, int(column) - 1))
            return f"{item.color} {item.shape}"
        case ["is", "the", color, shape, *side, "the", other_color, other_shape, "?"]:
            (x, y), (to_x, to_y) = where(scene, (color, shape)), where(scene, (other_color, other_shape))
            far = {"left": to_x - x, "right": x - to_x, "above": to_y - y, "below": y - to_y}[side[0]]
            assert abs(far) >= 12
            return "yes" if far > 0 else "no"
        case ["in", "which", "picture", "is", "the", color, shape, "?"]:
            (place,) = (place for place, scene in enumerate(scenes, 1) if (color, shape) in pairs(scene))
            return str(place)
        case ["in", "which", "picture", "are", "there", "more", shapes, "?"]:
            counts = [sum(SINGULAR[shapes] == shape for _, shape in pairs(scene)) for scene in scenes]
            assert counts[0] != counts[1]
            return str(counts.index(max(counts)) + 1)
        case ["what", "color", "is", "the", shape, "in", "picture", place, "?"]:
            (color,) = (color for color, other in pairs(scenes[int(place) - 1]) if other == shape)
            return color
        case ["is", "the", "number", "the", "same", *_]:
            return "yes" if len({scene.number.text for scene in scenes}) == 1 else "no"
        case ["which", "number", "is", "in", "picture", place, "?"]:
            return " ".join(scenes[int(place) - 1].number.text)
        case ["what", "is", "in", "picture", here, "and", "not", "in", "picture", there, "?"]:
            ((color, shape),) = set(pairs(scenes[int(here) - 1])) - set(pairs(scenes[int(there) - 1]))
            return f"{color} {shape}"
    raise AssertionError(question)


@pytest.mark.parametrize("task", LESSONS)
def test_every_answer_is_true_and_fits(task: str) -> None:
    rng = random.Random(f"truth/{task}")
    seen: Counter[str] = Counter()
    for level in [*LEVELS.values()] * 8:
        scenes = LESSONS[task].draw(rng, level, "training")
        asked = LESSONS[task].ask(scenes)
        texts = [question.text for questions in asked.values() for question in questions]
        assert len(texts) == len(set(texts))
        for kind, questions in asked.items():
            for question in questions:
                assert question.kind == kind
                assert question.answer == true_answer(question.text, scenes), (question, scenes)
                assert len(encode(f"{question.text} {SUFFIX} {question.answer} {EOS}")) <= LENGTH
                seen[kind] += 1
    assert set(seen) == set(LESSONS[task].kinds)


def test_levels_are_smaller_fuller_and_longer() -> None:
    sizes, objects, lengths, letters = {}, {}, {}, {}
    for name, level in LEVELS.items():
        rng = random.Random("levels")
        scenes = [LESSONS["detail"].draw(rng, level, "training")[0] for _ in range(20)]
        sizes[name] = max(item.radius for scene in scenes for item in scene.items)
        objects[name] = np.mean([len(scene.items) for scene in scenes])
        lengths[name] = min(len(scene.number.text) + len(scene.word.text) for scene in scenes)
        letters[name] = max(scene.word.size for scene in scenes)
    assert sizes["easy"] > sizes["middle"] > sizes["hard"]
    assert letters["easy"] > letters["middle"] > letters["hard"]
    assert objects["easy"] < objects["middle"] < objects["hard"]
    assert lengths["easy"] < lengths["middle"] < lengths["hard"]


@pytest.mark.parametrize("task", LESSONS)
def test_objects_and_texts_lie_inside_and_apart(task: str) -> None:
    rng = random.Random(f"apart/{task}")
    for level in [*LEVELS.values()] * 4:
        for scene in LESSONS[task].draw(rng, level, "training"):
            boxes = [(i.x - i.radius, i.y - i.radius, i.x + i.radius, i.y + i.radius) for i in scene.items]
            boxes += [text.box for text in (scene.number, scene.word) if text.text]
            for box in boxes:
                assert min(box) >= 0
                assert max(box) <= SIZE
            for a, b in itertools.combinations(boxes, 2):
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_counts_up_to_nine_all_come_often() -> None:
    rng = random.Random("nine")
    answers: Counter[str] = Counter()
    for _ in range(300):
        scenes = LESSONS["count"].draw(rng, LEVELS["hard"], "training")
        answers.update(question.answer for question in draw_questions(rng, LESSONS["count"].ask(scenes), 12))
    assert set(answers) == set("0123456789")
    assert min(answers[str(n)] for n in range(1, 10)) > 40


def test_drawn_questions_differ_and_their_kinds_take_turns() -> None:
    rng = random.Random("turns")
    scenes = LESSONS["compare"].draw(rng, LEVELS["hard"], "training")
    asked = LESSONS["compare"].ask(scenes)
    drawn = list(draw_questions(rng, asked, 8))
    assert len({question.text for question in drawn}) == len(drawn) == 8
    assert {question.kind for question in drawn} == {kind for kind, questions in asked.items() if questions}
    assert len(list(draw_questions(rng, asked, 10_000))) == sum(map(len, asked.values()))


def test_pictures_to_compare_differ_in_one_object_or_are_strangers() -> None:
    rng = random.Random("pairs")
    changed = same_number = 0
    for _ in range(200):
        first, second = LESSONS["compare"].draw(rng, LEVELS["middle"], "training")
        assert first.seed != second.seed
        same_number += first.number.text == second.number.text
        if len(first.items) == len(second.items):
            places = [(a.x, a.y) == (b.x, b.y) for a, b in zip(first.items, second.items, strict=True)]
            if all(places):
                different = [(a, b) for a, b in zip(first.items, second.items, strict=True) if a != b]
                ((a, b),) = different
                assert (a.color == b.color) != (a.shape == b.shape)
                changed += 1
    assert 110 < changed < 170
    assert 70 < same_number < 130


def test_a_caption_says_what_fits() -> None:
    rng = random.Random("captions")
    for task, level in itertools.product(LESSONS, LEVELS.values()):
        scene = LESSONS[task].draw(rng, level, "training")[0]
        for full in (True, False):
            text = describe(scene, rng, full=full, limit=20)
            encode(text)
            assert len(text.split()) <= 20
            for part in text.split(" , "):
                words = part.split()
                assert words[0] == "the" or tuple(words[1:]) in pairs(scene)


def test_patch_labels_see_small_objects_and_every_letter() -> None:
    rng = random.Random("labels")
    for _ in range(20):
        (scene,) = LESSONS["detail"].draw(rng, LEVELS["hard"], "training")
        labels = patch_labels(scene)
        letters = set(scene.number.text + scene.word.text) - {" "}
        assert len(set(labels[2].ravel())) - 1 == len(letters)
        centres = {(item.y // 8 + 1, item.x // 8 + 1) for item in scene.items}
        found = {(int(row), int(column)) for row, column in zip(labels[3].ravel(), labels[4].ravel(), strict=True)}
        assert found - {(0, 0)} == centres


@pytest.mark.parametrize("form", [SINGLE_FORM, PAIR_FORM], ids=["singles", "pairs"])
def test_training_never_draws_a_held_out_picture(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []

    def note(scene: Scene) -> object:
        drawn.append(scene)
        return render(scene)

    monkeypatch.setattr("vtprune.eval.embedded.mixture.render", note)
    arrays = example_arrays(1, form)
    for number in range(60):
        form.draw(arrays, 0, random.Random(f"continue/1/{number}"))
    assert len(drawn) >= 30
    assert not any(is_held_out(scene) for scene in drawn)
    held_out = {scene.seed for question in EVERYTHING for scene in question.scenes}
    assert len(held_out) > 1000
    assert not held_out & {scene.seed for scene in drawn}


def test_held_out_pictures_carry_the_mark_of_their_side() -> None:
    assert all(is_held_out(scene) for question in EVERYTHING for scene in question.scenes)


@pytest.mark.parametrize("task", LESSONS)
def test_held_out_questions_are_balanced_and_true(task: str) -> None:
    asked, lesson = ASKED[task], LESSONS[task]
    assert len(asked) == len({question.id for question in asked}) >= 210
    groups = Counter((question.kind, question.level) for question in asked)
    assert groups == {(kind, level): PER_LEVEL[task] for kind in lesson.kinds for level in LEVELS}
    for kind in lesson.kinds:
        if (task, kind) in (("detail", "number"), ("compare", "read")):  # any digits
            continue
        answers = Counter(
            question.answer.split()[0] if kind == "word" else question.answer
            for question in asked
            if question.kind == kind
        )
        assert len(answers) > 1
        assert max(answers.values()) <= math.ceil(answers.total() / len(answers)) + 1
    for question in asked:
        assert question.answer == true_answer(question.question, question.scenes)


def test_questions_survive_json() -> None:
    for question in ASKED["compare"][:5]:
        line = json.loads(json.dumps(question.to_json()))
        assert TaskQuestion.from_json(line) == question
        assert unpack(line["scenes"][1]) == question.scenes[1]
        assert hash(unpack(line["scenes"][1])) == hash(question.scenes[1])


@pytest.mark.parametrize("task", LESSONS)
def test_the_files_are_what_the_chooser_writes(task: str) -> None:
    assert list(itertools.islice(choose(task), 20)) == ASKED[task][:20]


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = question_file("count").read_bytes()
    check("count-v1.jsonl", content)
    with pytest.raises(ValueError, match=r"count-v1.jsonl has the SHA-256 [0-9a-f]{64}, recorded is [0-9a-f]{64};"):
        check("count-v1.jsonl", content.replace(b"circle", b"square", 1))
    with pytest.raises(ValueError, match=r"recorded is none; .* a new name"):
        check("count-v99.jsonl", content)
    monkeypatch.setattr(question_sets, "FOLDER", tmp_path)
    (tmp_path / "count-v1.jsonl").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="restore the file"):
        read_task("count")


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'colour'; .* detail, ground, count, compare"):
        read_task("colour")


def test_new_words_stand_behind_the_old_ones() -> None:
    assert TOKENS.index(EOS) == 110  # as in the first model
    assert len(TOKENS) == len(set(TOKENS)) < 256
    assert set(LONG_WORDS) < set(TOKENS[111:])
    assert len(set(ALL_KINDS)) == len(ALL_KINDS) < 255


def test_words_are_told_apart_by_few_letters() -> None:
    for word in LONG_WORDS:
        others = [other for other in LONG_WORDS if other != word and len(other) == len(word)]
        assert min(sum(a != b for a, b in zip(word, other, strict=True)) for other in others) <= 3, word


def test_a_scene_without_texts_is_drawn() -> None:
    (scene,) = LESSONS["ground"].draw(random.Random(0), LEVELS["easy"], "training")
    assert scene.number.text == scene.word.text == ""
    assert np.asarray(render(scene)).shape == (SIZE, SIZE, 3)
    assert not patch_labels(scene)[2].any()
    assert isinstance(scene.items[0], Item)
    assert set(pairs(scene)) <= set(PAIRS)
