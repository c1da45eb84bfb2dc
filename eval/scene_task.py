"""The tasks of the embedded questions, as functions that their YAML files name."""

from __future__ import annotations

import functools
import json
from typing import Any

from datasets import Dataset
from PIL import Image

from vtprune.eval.embedded.question_sets import check, question_file, unpack
from vtprune.eval.embedded.scenes import Scene, render

METRIC = "exact_match"


def read(lines: Dataset) -> Dataset:
    """One row a question. The scene stays JSON text: its lists are too irregular for columns."""

    def row(line: dict[str, str]) -> dict[str, str]:
        question = json.loads(line["text"])
        return {
            "id": str(question["id"]),
            "kind": question["kind"],
            "question": question["question"],
            "answer": question["answer"],
            "scene": json.dumps(question["scene"]),
        }

    return Dataset.from_list([row(line) for line in lines])


def picture(doc: dict[str, Any]) -> list[Image.Image]:
    """The drawn scene."""
    return [render(Scene.from_json(json.loads(doc["scene"])))]


def read_levels(task: str, lines: Dataset) -> Dataset:
    """One row a question of a task with levels, after the check that the file is the recorded one."""
    check(question_file(task).name, "".join(line["text"] + "\n" for line in lines).encode())
    questions = [json.loads(line["text"]) for line in lines]
    return Dataset.from_list([{**question, "scenes": json.dumps(question["scenes"])} for question in questions])


read_detail = functools.partial(read_levels, "detail")
read_ground = functools.partial(read_levels, "ground")
read_count = functools.partial(read_levels, "count")
read_compare = functools.partial(read_levels, "compare")


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    """The drawn scenes of a task with levels."""
    return [render(unpack(scene)) for scene in json.loads(doc["scenes"])]


def question(doc: dict[str, Any]) -> str:
    """What is asked."""
    return str(doc["question"])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right answer, under the metric's name and under that of the question's kind."""
    hit = float(normal(results[0]) == normal(doc["answer"]))
    return {METRIC: hit, f"{METRIC}_{doc['kind']}": hit}


def score_levels(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """As ``score``, and under the name of the question's level too."""
    scores = score(doc, results)
    return {**scores, f"{METRIC}_{doc['level']}": scores[METRIC]}


def normal(text: str) -> str:
    """Lower case, without blanks and closing dots: the embedded tokenizer sets blanks between digits.

    Example:
        >>> normal(" 3 1 7.") == normal("317")
        True
    """
    return "".join(text.lower().split()).rstrip(".")
