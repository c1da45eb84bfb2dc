"""Pictures to start with: scenes of the embedded benchmark, drawn when the app starts, with questions and answers."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from vtprune.eval.embedded import load_questions
from vtprune.eval.embedded.scenes import all_questions, render

EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """A drawn scene with a question that no training saw.

    Args:
        picture: The scene.
        question: What is asked of it at first.
        answers: The true answer of every question that the scene's generator knows.
    """

    picture: Image.Image
    question: str
    answers: dict[str, str]

    def truth(self, question: str) -> str | None:
        """The true answer, where it is known."""
        return self.answers.get(" ".join(question.lower().replace("?", " ?").split()))


def load_examples(count: int = EXAMPLES) -> list[Example]:
    """The first held-out questions, of all kinds in turn."""
    found = []
    for asked in load_questions()[:count]:
        known = {question.text: question.answer for group in all_questions(asked.scene).values() for question in group}
        found.append(Example(render(asked.scene), asked.question, {**known, asked.question: asked.answer}))
    return found
