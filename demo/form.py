"""What a visitor has entered, checked and turned into a question and a setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vtprune.budget import Budget
from vtprune.demo.examples import Example
from vtprune.demo.options import Options, build, to_text
from vtprune.demo.pictures import Upload, read_upload
from vtprune.demo.session import Ask, DemoError, Setting, Studio
from vtprune.demo.state import LinkState
from vtprune.demo.videos import read_film
from vtprune.eval.grid import parse_positions
from vtprune.eval.pictures import PictureError
from vtprune.layout import ImageLayout

BUDGETS = {"left at the end": "tokens", "on average over the layers": "average"}
POSITIONS = {"as the method's paper": "", "keep": "keep", "pack": "pack"}


@dataclass(frozen=True)
class Form:
    """The left side of the page.

    Args:
        picture: Path of the picture; `None` where an example is shown, or nothing.
        more: Paths of further pictures.
        film: Path of a video, which takes the place of the pictures.
        example: Number of the example shown; `None` for an upload.
        question: Text.
        methods: Names; several make a chain.
        options: What was changed of their hyper-parameters.
        budget: The slider.
        kind: A key of `BUDGETS`.
        positions: A key of `POSITIONS`.
    """

    picture: str | None
    more: Sequence[str] | None
    film: str | None
    example: int | None
    question: str
    methods: Sequence[str]
    options: Options
    budget: float
    kind: str
    positions: str

    def ask(self, examples: Sequence[Example]) -> tuple[Ask, str]:
        """The question, and what is worth knowing of the uploads.

        Raises:
            DemoError: No question or picture, or one that cannot be used.
        """
        if not self.question.strip():
            raise DemoError("Type a question about the picture first.")
        try:
            if self.film is not None:
                film = read_film(self.film)
                return Ask((), self.question, film=film.frames), film.note
            if self.example is not None:
                uploads = [Upload(examples[self.example].picture)]
            else:
                uploads = [read_upload(self.picture)]
            uploads += [read_upload(path) for path in self.more or ()]
        except PictureError as error:
            raise DemoError(str(error)) from error
        pictures: tuple[Image.Image, ...] = tuple(upload.picture for upload in uploads)
        return Ask(pictures, self.question), " ".join(upload.note for upload in uploads if upload.note)

    def truth(self, examples: Sequence[Example]) -> str | None:
        """The true answer, where the picture is one example alone."""
        if self.example is None or self.more or self.film:
            return None
        return examples[self.example].truth(self.question)

    def setting(self) -> Setting:
        """Method, budget and positions.

        Raises:
            OptionError: An option that cannot be.
            DemoError: A budget that cannot be.
        """
        return Setting(
            build(self.methods, self.options), self.allowance(), parse_positions(POSITIONS[self.positions] or None)
        )

    def allowance(self, tokens: float | None = None) -> Budget:
        """The budget, or the one for another place of the slider."""
        value = self.budget if tokens is None else tokens
        if value is None or value < 1 or value != round(value):
            raise DemoError(f"The budget must be a whole number of tokens, 1 or more, got {value}.")
        return Budget(average=int(value)) if BUDGETS[self.kind] == "average" else Budget(tokens=int(value))

    def link(self) -> LinkState:
        """What a link to this page carries."""
        kind = BUDGETS[self.kind]
        return LinkState(
            method=to_text(build(self.methods, self.options)),
            budget=f"{int(self.budget)}" if kind == "tokens" else f"average:{int(self.budget)}",
            positions=POSITIONS[self.positions],
            question=self.question,
            example=self.example,
        )


def count_text(studio: Studio, layout: ImageLayout, setting: Setting) -> str:
    """How many tokens of a picture stay, and where the others go.

    Raises:
        DemoError: The method does not fit the model, or the budget is out of reach.
    """
    plan = studio.plan(setting, layout)
    steps = [layout.tokens, *plan]
    falls = [(layer, after) for layer, (before, after) in enumerate(zip(steps, plan, strict=False)) if after != before]
    share = f"{plan[-1] / layout.tokens:.0%}"
    text = f"{plan[-1]} of {layout.tokens} tokens stay ({share})"
    if not falls:
        return f"All {layout.tokens} tokens stay"
    if falls == [(0, plan[-1])]:
        return f"{text}, chosen before the language model"
    stages = ", ".join(f"{after} from layer {layer} on" for layer, after in falls)
    return f"{text}: {stages}; {sum(plan) / len(plan):.0f} on average"
