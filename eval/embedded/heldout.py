"""The held-out questions, and how they were chosen: ``python -m vtprune.eval.embedded.heldout`` writes the file anew.

Sixty questions a kind, each on a scene of its own. Texts and answers are balanced together: whoever sees the text but
not the picture gets about the share of the most frequent answer (8 of 60 for a colour, a shape or a place, 12 of 60
for a count, exactly half for existence, where each text is asked once of a scene that has the object and once of one
that has not).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.eval.embedded.scenes import (
    COLORS,
    COLUMNS,
    KINDS,
    MAX_COUNT,
    ROWS,
    SHAPES,
    WORDS,
    Question,
    Scene,
    all_questions,
    sample_scene,
)

PER_KIND = 60


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """A line of the file: a question with its answer and all that is needed to draw its picture."""

    id: str
    kind: str
    question: str
    answer: str
    scene: Scene

    def to_json(self) -> dict[str, Any]:
        """The line as plain data."""
        return {
            "id": self.id,
            "kind": self.kind,
            "question": self.question,
            "answer": self.answer,
            "scene": self.scene.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HeldOutQuestion:
        """The question that ``to_json`` describes."""
        return cls(**{**data, "scene": Scene.from_json(data["scene"])})


def read_questions(path: Path) -> list[HeldOutQuestion]:
    """All questions of a file."""
    with path.open(encoding="utf-8") as lines:
        return [HeldOutQuestion.from_json(json.loads(line)) for line in lines]


Wanted = Callable[[Question, Scene], bool]


def _asks(text: str, answer: str) -> Wanted:
    return lambda question, scene: question.text == text and question.answer == answer


def _missing_pair(color: str, shape: str) -> Wanted:
    """The answer is no, though both the colour and the shape occur."""
    asked = _asks(f"is there a {color} {shape} ?", "no")
    return lambda question, scene: (
        asked(question, scene)
        and any(item.color == color for item in scene.items)
        and any(item.shape == shape for item in scene.items)
    )


def _targets(kind: str) -> list[Wanted]:
    """What each of the questions of a kind must be."""
    colors, shapes = list(COLORS), list(SHAPES)
    cells = [f"{row} {column}" for row in ROWS for column in COLUMNS]
    pairs = [(c, s) for c in range(8) for s in range(8) if c != s or c % 2]  # 60 of 64
    match kind:
        case "color":
            return [_asks(f"what color is the {shapes[s]} ?", colors[c]) for c, s in pairs]
        case "shape":
            return [_asks(f"what shape is the {colors[c]} one ?", shapes[s]) for c, s in pairs]
        case "exist":
            wanted = []
            for i, (c, s) in enumerate(pairs[::2]):
                text = f"is there a {colors[c]} {shapes[s]} ?"
                wanted.append(_asks(text, "yes"))
                wanted.append(_asks(text, "no") if i % 2 else _missing_pair(colors[c], shapes[s]))
            return wanted
        case "count":
            counts = [(s, n) for s in range(8) for n in range(MAX_COUNT + 1)]
            counts += [(s, n) for s, n in counts if (s + n) % 2 == 0]
            return [_asks(f"how many {SHAPES[shapes[s]]} are there ?", str(n)) for s, n in counts]
        case "number":
            return [lambda question, scene: True] * PER_KIND
        case "word":
            return [_asks("which word is written ?", word) for word in WORDS for _ in range(2)]
        case _:
            places = [(s, c) for s in range(8) for c in range(9) if c != s and (s % 2 or c != (s + 4) % 9)]
            return [_asks(f"where is the {shapes[s]} ?", cells[c]) for s, c in places]


def choose_questions() -> Iterator[HeldOutQuestion]:
    """The held-out set, the kinds in turn; its random streams are not those of the training."""
    targets = {kind: _targets(kind) for kind in KINDS}
    for kind in KINDS:
        random.Random(f"held-out/order/{kind}").shuffle(targets[kind])
    for i in range(PER_KIND):
        for kind in KINDS:
            rng = random.Random(f"held-out/{kind}/{i}")
            while True:
                scene = sample_scene(rng)
                found = [q for q in all_questions(scene)[kind] if targets[kind][i](q, scene)]
                if found:
                    break
            yield HeldOutQuestion(f"{kind}-{i:02d}", kind, found[0].text, found[0].answer, scene)


def main() -> None:
    """Write ``questions.jsonl``."""
    path = Path(__file__).resolve().parent / "questions.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for question in choose_questions():
            lines.write(json.dumps(question.to_json(), separators=(",", ":")) + "\n")
    print(path)


if __name__ == "__main__":
    main()
