"""The held-out questions of the harder tasks: files by task and version, checked against recorded hashes.

``python -m vtprune.eval.embedded.question_sets`` writes them anew. Who changes what is drawn or asked raises
``VERSION``: results name the version of their questions, and a file once published stays as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.eval.embedded.lessons import BOXES, LESSONS, MAX_COUNT
from vtprune.eval.embedded.levels import LEVELS, LONG_WORDS, PAIRS
from vtprune.eval.embedded.scenes import COLORS, SHAPES, Item, Line, Question, Scene, Text

VERSION = 1
FOLDER = Path(__file__).resolve().parent / "questions"
SUMS = FOLDER / "SHA256SUMS"
"""Hashes in the format of ``sha256sum``."""

PER_LEVEL: dict[str, int] = {"detail": 20, "ground": 24, "count": 20, "compare": 16}
"""Questions of each kind and level."""


@dataclass(frozen=True, slots=True)
class TaskQuestion:
    """A line of a file: a question with its answer, and the scenes of its pictures."""

    id: str
    kind: str
    level: str
    question: str
    answer: str
    scenes: tuple[Scene, ...]

    def to_json(self) -> dict[str, Any]:
        """The line as plain data; scenes are nested lists in the order of their fields."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"scenes": [dataclasses.astuple(scene) for scene in self.scenes]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskQuestion:
        """The question that ``to_json`` describes."""
        return cls(**{**data, "scenes": tuple(unpack(scene) for scene in data["scenes"])})


def unpack(fields: Sequence[Any]) -> Scene:
    """A scene of a file's line."""
    seed, cells, lines, items, number, word = fields
    return Scene(
        seed,
        cells,
        tuple(Line(x0, y0, x1, y1, width, tuple(color)) for x0, y0, x1, y1, width, color in lines),
        tuple(Item(*item) for item in items),
        Text(*number),
        Text(*word),
    )


def question_file(task: str) -> Path:
    """Where the questions of a task are.

    Raises:
        ValueError: There is no such task.
    """
    if task not in LESSONS:
        raise ValueError(f"unknown task {task!r}; the embedded tasks with levels are {', '.join(LESSONS)}")
    return FOLDER / f"{task}-v{VERSION}.jsonl"


def check(name: str, content: bytes) -> None:
    """Compares a file's content with its recorded hash.

    Raises:
        ValueError: It differs, or no hash is recorded under this name.
    """
    lines = [line.split() for line in SUMS.read_text(encoding="utf-8").splitlines()]
    recorded = next((digest for digest, file in lines if file == name), "none")
    found = hashlib.sha256(content).hexdigest()
    if recorded != found:
        raise ValueError(
            f"{name} has the SHA-256 {found}, recorded is {recorded}; results on it would not be "
            "comparable: restore the file, or put questions of your own under a new name"
        )


def read_task(task: str) -> list[TaskQuestion]:
    """All questions of a task, after the check of their hash."""
    path = question_file(task)
    content = path.read_bytes()
    check(path.name, content)
    return [TaskQuestion.from_json(json.loads(line)) for line in content.splitlines()]


def _answers(task: str, kind: str) -> Sequence[str | None]:
    """Answers that come in turn; None stands for any. Of words, the first of two counts."""
    match task, kind:
        case (("detail" | "compare"), "color"):
            return list(COLORS)
        case "detail", "shape":
            return list(SHAPES)
        case "detail", "word":
            return LONG_WORDS
        case "count", _:
            return [str(n) for n in range(kind == "all", MAX_COUNT + 1)]
        case "ground", "box":
            return [f"{row + 1} {column + 1}" for row in range(BOXES) for column in range(BOXES)]
        case _, ("inbox" | "change"):
            return [" ".join(pair) for pair in PAIRS]
        case "ground", "side":
            return ["yes", "no"]
        case "compare", "number":
            return ["yes", "no"]
        case "compare", ("which" | "more"):
            return ["1", "2"]
    return [None]


def _matches(question: Question, wanted: str | None) -> bool:
    return wanted is None or question.answer == wanted or question.answer.split()[0] == wanted


def choose(task: str) -> Iterator[TaskQuestion]:
    """The held-out set of a task, kinds and levels in turn, each question on pictures of its own."""
    lesson, count = LESSONS[task], PER_LEVEL[task]
    answers = {}
    for kind in lesson.kinds:
        answers[kind] = list(_answers(task, kind))
        random.Random(f"held-out/v{VERSION}/{task}/order/{kind}").shuffle(answers[kind])
    for i in range(count):
        for turn, level in enumerate(LEVELS):
            for kind in lesson.kinds:
                wanted = answers[kind][(turn * count + i) % len(answers[kind])]
                rng = random.Random(f"held-out/v{VERSION}/{task}/{kind}/{level}/{i}")
                found: list[Question] = []
                while not found:
                    scenes = lesson.draw(rng, LEVELS[level], "held-out")
                    found = [q for q in lesson.ask(scenes)[kind] if _matches(q, wanted)]
                chosen = rng.choice(found)
                yield TaskQuestion(f"{kind}-{level}-{i:02d}", kind, level, chosen.text, chosen.answer, scenes)


def main() -> None:
    """Write the files and their hashes."""
    FOLDER.mkdir(exist_ok=True)
    sums = []
    for task in LESSONS:
        lines = [json.dumps(question.to_json(), separators=(",", ":")) + "\n" for question in choose(task)]
        content = "".join(lines).encode()
        question_file(task).write_bytes(content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {question_file(task).name}\n")
    SUMS.write_text("".join(sums), encoding="utf-8")
    print(FOLDER)


if __name__ == "__main__":
    main()
