"""What the events of the page do: entered values in, parts of the page out, by name."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from vtprune.budget import Budget
from vtprune.demo import cards, plots
from vtprune.demo.drawing import Look, View
from vtprune.demo.examples import Example
from vtprune.demo.form import BUDGETS, POSITIONS, Form, count_text
from vtprune.demo.option_form import changed
from vtprune.demo.options import OptionError, Options, build, from_text
from vtprune.demo.pictures import read_upload
from vtprune.demo.session import Ask, DemoError, Outcome, Setting, Stop, Stopped, Studio
from vtprune.demo.sheet import sheet
from vtprune.demo.snippet import snippet
from vtprune.demo.state import LinkState
from vtprune.eval.grid import parse_positions
from vtprune.eval.pictures import PictureError
from vtprune.layout import ImageLayout

VIEWS: dict[str, View] = {"kept tokens": "kept", "heat map of scores": "scores", "merge groups": "groups"}

_MOST_LAYOUTS = 1000
"""Sizes of pictures whose layout is remembered."""


class Page:
    """What the events of the page do.

    Args:
        studio: The model.
        examples: Pictures to start with.
    """

    def __init__(self, studio: Studio, examples: Sequence[Example]) -> None:
        self.studio = studio
        self.examples = examples
        self.layouts: dict[Any, ImageLayout] = {}
        self.layout = self.layout_of(Ask((examples[0].picture,), "?"))
        self.takes_videos = studio.takes_videos()
        self.stops: dict[str, Stop] = {}
        self.files = tempfile.TemporaryDirectory(prefix="vtprune-demo-")

    def start(self, request: gr.Request) -> Stop:
        """A wish to stop that the visitor's stop button can find."""
        stop = self.stops[str(request.session_hash)] = Stop()
        return stop

    def stop(self, request: gr.Request) -> str:
        """Ends what the visitor has running."""
        if (stop := self.stops.get(str(request.session_hash))) is not None:
            stop.ask()
        return cards.message("Stopped.", kind="note")

    def leave(self, request: gr.Request) -> None:
        """Ends what the visitor has running, and forgets them."""
        if (stop := self.stops.pop(str(request.session_hash), None)) is not None:
            stop.ask()
        shutil.rmtree(self._own_folder(request), ignore_errors=True)

    def layout_of(self, ask: Ask) -> ImageLayout:
        """How the model lays out the tokens of the picture that has most of them.

        Raises:
            DemoError: The model does not take such pictures.
        """
        key = tuple(each.size for each in ask.pictures), tuple(each.size for each in ask.film)
        if key not in self.layouts:
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            self.layouts[key] = max(self.studio.probe(ask), key=lambda layout: layout.tokens)
        return self.layouts[key]

    def measure(self, *values: Any) -> dict[str, Any]:
        """Fits the slider to new pictures, and says what is wrong with them."""
        form = Form(*values)
        try:
            ask, note = dataclasses.replace(form, question=form.question.strip() or "?").ask(self.examples)
            layout = self.layout_of(ask)
        except (DemoError, OptionError) as error:
            return {"message": cards.message(str(error))}
        budget = min(int(form.budget), layout.tokens)
        return {
            "message": cards.message(note, kind="note"),
            "layout": layout,
            "budget": gr.Slider(maximum=layout.tokens, value=budget),
            "count": self.count(form.methods, form.options, budget, form.kind, layout),
        }

    def count(
        self, methods: Sequence[str], options: Options, budget: float, kind: str, layout: ImageLayout | None
    ) -> str:
        """The line below the slider."""
        form = Form(None, None, None, None, "", methods, options, budget, kind, next(iter(POSITIONS)))
        try:
            return f'<span class="count">{count_text(self.studio, layout or self.layout, form.setting())}</span>'
        except (OptionError, DemoError) as error:
            return cards.message(str(error))

    def example(self, event: gr.EventData) -> tuple[Any, ...]:
        """Shows an example."""
        number = int(event.index)
        return self.examples[number].picture, self.examples[number].question, None, number

    def enter(self, event: gr.EventData) -> dict[str, dict[str, Any]]:
        """The options that the form holds."""
        return changed(event.entered)

    def look(self, view: str, grid: bool, *values: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        """Streams answers, then everything else."""
        form = Form(*values)
        stop = self.start(request)
        try:
            ask, note = form.ask(self.examples)
            setting = form.setting()
            truth = form.truth(self.examples)
            tokens = self.layout_of(ask).tokens * max(1, len(ask.pictures))
            for found in self.studio.look(ask, setting, stop):
                name = "/".join(form.methods)
                shown = {
                    "message": cards.message(note, kind="note"),
                    "answers": cards.answers(form.question, found, tokens, name, truth),
                }
                if isinstance(found, Outcome):
                    shown |= self.shown(found, view, grid) | {
                        "snippet": self.program(form, [setting]),
                        "link": link(form.link()),
                    }
                yield shown
        except (OptionError, DemoError) as error:
            yield {"message": cards.message(str(error))}
        except Stopped:
            yield {"message": cards.message("Stopped.", kind="note")}

    def follow(
        self, linked: dict[str, str], methods: Sequence[str], view: str, grid: bool, *values: Any, request: gr.Request
    ) -> Iterator[dict[str, Any]]:
        """Does at once what a link shows."""
        match LinkState.from_query(linked, len(self.examples))[0].tab:
            case "compare":
                yield from self.compare(methods, *values, request=request)
            case "sweep":
                yield from self.sweep(*values, request=request)
            case _:
                yield from self.look(view, grid, *values, request=request)

    def shown(self, found: Outcome, view: str, grid: bool) -> dict[str, Any]:
        """What an outcome puts on the page."""
        return {
            "outcome": found,
            "costs": cards.costs(found),
            "overlay": cards.overlays(found, Look(VIEWS[view], grid)),
            **self.stage(found, len(found.stages)),
        }

    def stage(self, found: Outcome, number: float) -> dict[str, Any]:
        """One stage of the last answer, counted from 1, and the slider to go with it."""
        last = len(found.stages)
        place = min(max(int(number), 1), last)
        return {
            "stage": gr.Slider(1, max(last, 2), value=place, step=1, interactive=last > 1),
            "stages": self.stage_html(found, place),
        }

    def stage_html(self, found: Outcome, place: int) -> str:
        """One stage of an answer, counted from 1."""
        last = len(found.stages)
        at = found.stages[place - 1]
        where = "before the language model" if at.layer == 0 else f"before decoder layer {at.layer}"
        only = (
            " It removes tokens only once; pyramiddrop, feather or sparsevlm do so several times." if last == 1 else ""
        )
        head = (
            f'<p class="caption">Stage {place} of {last} of <b>{found.method}</b>, {where}: {at.before} tokens become '
            f"{at.after}.{only}</p>"
        )
        bars = plots.layers_svg(found.tokens_per_layer, found.tokens, at.layer)
        bars = f'<p class="caption">Tokens in each decoder layer:</p>{bars}'
        return head + bars + cards.overlays(found, Look(), place - 1)

    def compare(self, methods: Sequence[str], *values: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        """Fills the gallery method by method."""
        form = Form(*values)
        stop = self.start(request)
        outcomes: list[Outcome] = []
        try:
            ask, note = form.ask(self.examples)
            if not methods:
                raise DemoError("Pick at least one method to compare.")
            positions = parse_positions(POSITIONS[form.positions] or None)
            settings = [Setting(build([name], form.options), form.allowance(), positions) for name in methods]
            truth = form.truth(self.examples)
            yield {"message": cards.message(note, kind="note"), "gallery": ""}
            for found in self.studio.compare(ask, settings, stop):
                outcomes.append(found)
                yield {"gallery": cards.gallery(outcomes, truth)}
            yield {
                "png": gr.DownloadButton(value=self.save(outcomes, request), interactive=True),
                "snippet": self.program(form, settings),
                "link": link(dataclasses.replace(form.link(), tab="compare", compare=",".join(methods))),
            }
        except (OptionError, DemoError) as error:
            yield {"message": cards.message(str(error))}
        except Stopped:
            yield {"message": cards.message("Stopped.", kind="note")}

    def save(self, outcomes: Sequence[Outcome], request: gr.Request) -> str:
        """The gallery as a file, of which each visitor has one."""
        path = self._own_folder(request) / "comparison.png"
        path.parent.mkdir(exist_ok=True)
        sheet(cards.by_agreement(outcomes)).save(path)
        return str(path)

    def _own_folder(self, request: gr.Request) -> Path:
        return Path(self.files.name) / hashlib.sha256(str(request.session_hash).encode()).hexdigest()[:16]

    def sweep(self, *values: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        """Draws the plot point by point."""
        form = Form(*values)
        stop = self.start(request)
        found: list[Outcome] = []
        try:
            ask, note = form.ask(self.examples)
            setting = form.setting()
            most = self.layout_of(ask).tokens
            settings = [
                Setting(setting.method, form.allowance(count), setting.positions) for count in plots.budgets(most)
            ]
            yield {"message": cards.message(note, kind="note"), "plot": "", "point": "", "swept": []}
            for outcome in self.studio.compare(ask, settings, stop):
                found.append(outcome)
                yield {"plot": self.plot(found)}
            middle = next((number for number, one in enumerate(found) if not one.same), len(found) - 1)
            yield {
                "swept": found,
                **self.point(found, middle),
                "snippet": self.program(form, settings),
                "link": link(dataclasses.replace(form.link(), tab="sweep")),
            }
        except (OptionError, DemoError) as error:
            yield {"message": cards.message(str(error))}
        except Stopped:
            yield {"message": cards.message("Stopped.", kind="note"), "swept": found}

    def plot(self, found: Sequence[Outcome], chosen: int | None = None) -> str:
        """The plot of a sweep, and where the answer changes."""
        points = [plots.Point(one.pruned.tokens, one.agreement or 0.0, one.pruned.answer, one.same) for one in found]
        drawn = plots.sweep_svg(points, found[0].tokens, chosen)
        return f'{drawn}<p class="caption flips">{plots.flip_text(points)}</p>'

    def point(self, found: Sequence[Outcome], number: int) -> dict[str, Any]:
        """The overlay of one point of a sweep."""
        if not 0 <= number < len(found):
            return {}
        one = found[number]
        return {
            "plot": self.plot(found, number),
            "point": cards.answers(one.question, one, one.tokens, one.method, None) + cards.overlays(one, Look()),
        }

    def program(self, form: Form, settings: Sequence[Setting]) -> str:
        """The Python that does the same."""
        tower = self.studio.loaded.text_tower
        return snippet(
            self.studio.name,
            form.question,
            list(dict.fromkeys(setting.method for setting in settings)),
            list(dict.fromkeys(setting.budget for setting in settings)),
            positions=settings[0].positions,
            pictures=0 if form.film else 1 + len(form.more or ()),
            text_tower=tower if isinstance(tower, str) else None,
        )

    def linked(self, request: gr.Request) -> dict[str, str]:
        """What of the address says how the page shall look."""
        return {name: value for name, value in request.query_params.items() if name in LinkState().__dict__}

    def restore(self, linked: dict[str, str]) -> tuple[Any, ...]:
        """The form that a link asks for."""
        state, ignored = LinkState.from_query(linked, len(self.examples))
        if state.budget.startswith("average:"):
            kind, budget = "on average over the layers", float(state.budget.partition(":")[2])
        elif state.budget.isdecimal():
            kind, budget = next(iter(BUDGETS)), float(state.budget)
        else:
            ignored.append(f"budget: {Budget.parse(state.budget)} cannot be set here.")
            kind, budget = next(iter(BUDGETS)), 64.0
        names, options = from_text(state.method)
        positions = next(words for words, value in POSITIONS.items() if value == state.positions)
        example = self.examples[state.example or 0]
        note = f"Some of the link was ignored. {' '.join(ignored)}" if ignored else ""
        return (
            example.picture,
            state.example or 0,
            state.question or example.question,
            names,
            options,
            min(budget, self.layout.tokens),
            kind,
            positions,
            cards.message(note, kind="note"),
            gr.Tabs(selected=state.tab),
            state.compare.split(",") if state.compare else gr.skip(),
        )

    def answer(
        self, picture: gr.FileData, question: str, method: str = "divprune", budget: str = "64", positions: str = ""
    ) -> dict[str, Any]:
        """Asks the full and the pruned model about a picture.

        `method` and `budget` are written as for `vtprune run`: fastv(layer=3), visionzip/pyramiddrop; 64, 0.25,
        average:64. `positions` is keep, pack or empty. Gives answers, costs and, for each stage, the kept tokens.
        """
        try:
            upload = read_upload(_uploaded(picture))
            names, options = from_text(method)
            setting = Setting(build(names, options), Budget.parse(budget), parse_positions(positions or None))
            *_, found = self.studio.look(Ask((upload.picture,), question), setting)
        except (PictureError, OptionError, DemoError, ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        assert isinstance(found, Outcome)
        return as_data(found)


def link(state: LinkState) -> str:
    """What follows the page's address in a link to this state; only the browser knows what comes before."""
    return f"?{state.to_query()}"


def _uploaded(picture: Any) -> Path:
    """Where an upload lies, and nothing else of this machine's files.

    Raises:
        DemoError: It is no upload.
    """
    named = picture.get("path") if isinstance(picture, dict) else getattr(picture, "path", picture)
    path = Path(str(named)).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise DemoError("The picture must be uploaded: give it to the client as handle_file(path).")
    return path


def as_data(found: Outcome) -> dict[str, Any]:
    """An outcome as plain data."""
    return {
        "method": found.method,
        "budget": found.budget,
        "positions": found.positions,
        "tokens": found.tokens,
        "full": vars(found.full),
        "pruned": vars(found.pruned),
        "stages": [
            {"layer": stage.layer, "kept": [list(image.kept) for image in stage.images]} for stage in found.stages
        ],
    }
