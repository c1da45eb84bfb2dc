"""The task of the embedded questions, as functions that its YAML file names."""

from __future__ import annotations

import json
from typing import Any

from datasets import Dataset
from PIL import Image

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


def question(doc: dict[str, Any]) -> str:
    """What is asked."""
    return str(doc["question"])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right answer, under the metric's name and under that of the question's kind."""
    hit = float(normal(results[0]) == normal(doc["answer"]))
    return {METRIC: hit, f"{METRIC}_{doc['kind']}": hit}


def normal(text: str) -> str:
    """Lower case, without blanks and closing dots: the embedded tokenizer sets blanks between digits.

    Example:
        >>> normal(" 3 1 7.") == normal("317")
        True
    """
    return "".join(text.lower().split()).rstrip(".")
