"""The tasks with levels in lmms-eval: the group, pictures and questions of a prompt, scores, the check of the data."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from datasets import Dataset

from vtprune.eval import scene_task
from vtprune.eval.embedded import QUESTIONS_FILE
from vtprune.eval.embedded.lessons import LESSONS
from vtprune.eval.embedded.levels import LEVELS
from vtprune.eval.embedded.question_sets import question_file, read_task
from vtprune.eval.embedded.scenes import render
from vtprune.eval.harness import TASK_FOLDER, TaskBook, quiet

GROUP = ["vtprune_scenes", *(f"vtprune_{task}" for task in LESSONS)]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    book = TaskBook()
    with quiet():
        return {name: book.load(name) for name in book.resolve(["vtprune_embedded"])}


def test_the_group_holds_them_all(tasks: dict[str, Any]) -> None:
    assert list(tasks) == GROUP
    assert [len(task.eval_docs) for task in tasks.values()] == [420, 240, 216, 240, 288]


@pytest.mark.parametrize("name", LESSONS)
def test_a_prompt_shows_the_pictures_and_asks(name: str, tasks: dict[str, Any]) -> None:
    task, asked = tasks[f"vtprune_{name}"], read_task(name)[-1]
    doc = task.eval_docs[len(task.eval_docs) - 1]
    (message,) = task.doc_to_messages(doc)
    *pictures, text = message["content"]
    assert text == {"type": "text", "text": asked.question}
    assert [part["url"].tobytes() for part in pictures] == [render(scene).tobytes() for scene in asked.scenes]
    assert len(pictures) == (2 if name == "compare" else 1)
    assert task.doc_to_target(doc) == asked.answer
    assert (doc["kind"], doc["level"]) == (asked.kind, asked.level)


@pytest.mark.parametrize("name", LESSONS)
def test_every_kind_and_level_has_its_metric(name: str, tasks: dict[str, Any]) -> None:
    task = tasks[f"vtprune_{name}"]
    found: set[str] = set()
    for doc in task.eval_docs:
        scores = task.process_results(doc, [doc["answer"]])
        assert set(scores.values()) == {1.0}
        found |= set(scores)
    names = {"exact_match", *(f"exact_match_{group}" for group in (*LESSONS[name].kinds, *LEVELS))}
    assert found == names == {entry["metric"] for entry in task.config.metric_list}
    assert set(task.process_results(task.eval_docs[0], ["nothing"]).values()) == {0.0}


def test_changed_questions_are_refused() -> None:
    lines = question_file("ground").read_text(encoding="utf-8").splitlines()
    assert len(scene_task.read_ground(Dataset.from_list([{"text": line} for line in lines]))) == len(lines)
    easier = json.loads(lines[0]) | {"answer": "1 1"}
    changed = Dataset.from_list([{"text": json.dumps(easier)}, *({"text": line} for line in lines[1:])])
    with pytest.raises(ValueError, match=r"ground-v1.jsonl has the SHA-256"):
        scene_task.read_ground(changed)


def test_the_first_task_stays_as_it_is() -> None:
    """Published results refer to it."""
    digests = [
        hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (QUESTIONS_FILE, TASK_FOLDER / "vtprune_scenes.yaml")
    ]
    assert digests == ["39620772d8c04762", "854b90d46fa60ff3"]
