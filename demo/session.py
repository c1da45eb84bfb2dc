"""What one model says to a visitor's question under several methods and budgets; knows nothing of how it is shown."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList, TextStreamer

import vtprune
from vtprune.adapters import find_adapter
from vtprune.budget import Budget, per_layer_tokens
from vtprune.demo.watching import Watch, Watched, watched
from vtprune.eval.compare import Run, answer_text, chat_inputs, first_token_seconds, generate, run_of
from vtprune.eval.grid import EVERYTHING, Positions, method_label
from vtprune.eval.models import LoadedModel
from vtprune.eval.pictures import seen_picture
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner
from vtprune.registry import make_pruner
from vtprune.reporting import Report

FoundT = TypeVar("FoundT")

_NO_TOKENS = "This model's prompt has no visual tokens: its chat template does not place the picture."

_SHOWN = 1024
"""Pixels of the longer side of a picture that is kept to be shown."""


class DemoError(ValueError):
    """What cannot be done, in words for the visitor."""


class Stopped(Exception):
    """The visitor asked to stop."""


@dataclass(frozen=True)
class Ask:
    """A question about pictures, or about a video.

    Args:
        pictures: In the order of the prompt.
        question: Text.
        max_new_tokens: Longest answer.
        film: Frames of a video.
    """

    pictures: tuple[Image.Image, ...]
    question: str
    max_new_tokens: int = 64
    film: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Setting:
    """How tokens are pruned.

    Args:
        method: Which ones stay.
        budget: How many.
        positions: `"keep"`, `"pack"` or `None` for the method's own.
    """

    method: Pruner
    budget: Budget
    positions: Positions | None = None


@dataclass(frozen=True)
class Stage:
    """The tokens behind one stage, for each picture.

    Args:
        layer: Decoder layer that the survivors entered.
        before: Visual tokens of the prompt before it.
        after: Visual tokens behind it.
        images: What became of the tokens of each picture.
    """

    layer: int
    before: int
    after: int
    images: tuple[Watched, ...]


@dataclass(frozen=True)
class Outcome:
    """The full and the pruned model on one question.

    Args:
        question: What was asked.
        method: The method with its options.
        budget: The budget in words.
        positions: `"keep"` or `"pack"`.
        full: With all tokens.
        pruned: With the budgeted ones; neither is timed where many are compared.
        agreement: Log-probability of the full model's answer under the pruned one; `None` where it was not asked.
        seen: Each picture as its tokens cover it; of a video its frames.
        layouts: How the tokens of each picture lie.
        stages: Where tokens were removed; one with everything where none were.
        tokens_per_layer: Visual tokens that each decoder layer processed.
    """

    question: str
    method: str
    budget: str
    positions: str
    full: Run
    pruned: Run
    agreement: float | None
    seen: tuple[Image.Image | tuple[Image.Image, ...], ...]
    layouts: tuple[ImageLayout, ...]
    stages: tuple[Stage, ...]
    tokens_per_layer: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Visual tokens of the prompt before pruning."""
        return sum(layout.tokens for layout in self.layouts)

    @property
    def same(self) -> bool:
        """Whether both models give the same answer."""
        return self.full.answer == self.pruned.answer


@dataclass(frozen=True)
class Partial:
    """Answers as far as they have come.

    Args:
        full: Of the model with all tokens.
        pruned: Of the pruned one; `None` before its turn.
    """

    full: str
    pruned: str | None = None


class Stop:
    """A visitor's wish to stop, which the next token obeys."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ask(self) -> None:
        """Asks to stop."""
        self._event.set()

    def check(self) -> None:
        """Raises `Stopped` if that was asked."""
        if self._event.is_set():
            raise Stopped

    @property
    def asked(self) -> bool:
        """Whether that was asked."""
        return self._event.is_set()


@dataclass(frozen=True)
class _Answer:
    run: Run
    ids: torch.Tensor
    report: Report
    agreement: float | None


class Studio:
    """A model that many visitors share: one question at a time, and nothing left on the model between two.

    Args:
        loaded: The model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._turn = threading.Lock()

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.loaded.name

    def look(self, ask: Ask, setting: Setting, stop: Stop | None = None) -> Generator[Partial | Outcome, None, None]:
        """Streams both answers and ends with the outcome.

        Raises:
            DemoError: It cannot be done; the message says why.
            Stopped: The visitor asked to stop.
        """
        wish = stop or Stop()

        def work(emit: Callable[[Partial | Outcome], None]) -> None:
            inputs = self._inputs(ask)
            full = self._full(ask, inputs, wish, lambda text: emit(Partial(text)))
            emit(Partial(full.run.answer, ""))
            emit(self._pruned(ask, inputs, setting, full, wish, lambda text: emit(Partial(full.run.answer, text))))

        return self._stream(work, wish)

    def compare(
        self, ask: Ask, settings: Sequence[Setting], stop: Stop | None = None
    ) -> Generator[Outcome, None, None]:
        """One outcome for each setting, as soon as it is there, with its agreement.

        Raises:
            DemoError: It cannot be done; the message says why.
            Stopped: The visitor asked to stop.
        """
        wish = stop or Stop()

        def work(emit: Callable[[Outcome], None]) -> None:
            inputs = self._inputs(ask)
            full = self._full(ask, inputs, wish)
            for setting in settings:
                emit(self._pruned(ask, inputs, setting, full, wish, agreement=True))

        return self._stream(work, wish)

    def probe(self, ask: Ask) -> tuple[ImageLayout, ...]:
        """How the model lays out the tokens of each picture, or of the video.

        Raises:
            DemoError: The model cannot be pruned, or takes no pictures this way.
        """
        with self._turn, _explaining():
            inputs = self._inputs(ask)
            with self._pruning(Setting(make_pruner("stride"), EVERYTHING)):
                generate(self.loaded, inputs, 1)
                return tuple(self._report().layouts[0])

    def takes_videos(self) -> bool:
        """Whether a video gets through to the model."""
        if getattr(self.loaded.processor, "video_processor", None) is None:
            return False
        frames = tuple(Image.new("RGB", (64, 64), (40 * number, 90, 120)) for number in range(4))
        try:
            layouts = self.probe(Ask((), "?", film=frames))
        except Exception:
            # Processors and templates refuse in ways of their own; whatever it is, videos are not offered then.
            return False
        return len(layouts) == 1

    def plan(self, setting: Setting, layout: ImageLayout) -> tuple[int, ...]:
        """Tokens of such a picture in each decoder layer.

        Raises:
            DemoError: The method does not fit the model, or the budget is out of reach.
        """
        adapter = find_adapter(self.loaded.model)
        with _explaining():
            method = setting.method.fit(adapter.depths)
            keep = setting.budget.resolve(method, [layout], adapter.shape, 0)[0]
            return tuple(per_layer_tokens(method, layout.tokens, keep, adapter.depths.decoder))

    def _stream(self, work: Callable[[Callable[[FoundT], None]], None], stop: Stop) -> Generator[FoundT, None, None]:
        """Runs the work in a thread of its own, which holds the model until it is done, and yields what it emits."""
        channel: queue.SimpleQueue[_Item[FoundT] | _End] = queue.SimpleQueue()

        def run() -> None:
            error: BaseException | None = None
            try:
                with self._turn, _explaining():
                    stop.check()
                    work(lambda item: channel.put(_Item(item)))
            except BaseException as caught:
                error = caught
            channel.put(_End(error))

        worker = threading.Thread(target=run, name="vtprune demo", daemon=True)
        worker.start()
        try:
            while isinstance(item := channel.get(), _Item):
                yield item.value
            worker.join()
            if item.error is not None:
                raise item.error
        finally:
            # Also where the visitor has gone and nobody asks for the rest.
            stop.ask()

    def _inputs(self, ask: Ask) -> Any:
        if not ask.pictures and not ask.film:
            raise DemoError("There is no picture yet: upload one, paste one, use the camera or pick an example.")
        if not ask.question.strip():
            raise DemoError("Type a question about the picture first.")
        return chat_inputs(self.loaded, ask.pictures, ask.question.strip(), film=ask.film)

    def _pruning(self, setting: Setting) -> Any:
        return vtprune.pruning(
            self.loaded.model,
            setting.method,
            setting.budget,
            positions=setting.positions,
            text_tower=self.loaded.text_tower,
            processor=self.loaded.processor,
        )

    def _report(self) -> Report:
        try:
            return vtprune.report(self.loaded.model)
        except ValueError as error:
            raise DemoError(_NO_TOKENS) from error

    def _full(self, ask: Ask, inputs: Any, stop: Stop, show: Callable[[str], None] | None = None) -> _Answer:
        setting = Setting(make_pruner("stride"), EVERYTHING)
        return self._answer(ask, inputs, setting, stop, Watch(), show)

    def _pruned(
        self,
        ask: Ask,
        inputs: Any,
        setting: Setting,
        full: _Answer,
        stop: Stop,
        show: Callable[[str], None] | None = None,
        *,
        agreement: bool = False,
    ) -> Outcome:
        watch = Watch()
        method = watched(setting.method, watch)
        found = self._answer(
            ask,
            inputs,
            Setting(method, setting.budget, setting.positions),
            stop,
            watch,
            show,
            reference=full.ids if agreement else None,
        )
        report = found.report
        layouts = tuple(report.layouts[0])
        stages = tuple(
            Stage(
                stage.layer,
                stage.before,
                stage.after,
                tuple(watch.find(number, tokens.tolist()) for tokens in stage.images[0]),
            )
            for number, stage in enumerate(report.stages)
        )
        everything = tuple(Watched(tuple(range(layout.tokens))) for layout in layouts)
        return Outcome(
            question=ask.question,
            method=method_label(setting.method),
            budget=str(setting.budget),
            positions=report.positions,
            full=full.run,
            pruned=found.run,
            agreement=found.agreement,
            seen=tuple(self._seen(ask, inputs, layouts)),
            layouts=layouts,
            stages=stages or (Stage(0, report.visual_tokens, report.visual_tokens, everything),),
            tokens_per_layer=tuple(report.tokens_per_layer),
        )

    def _answer(
        self,
        ask: Ask,
        inputs: Any,
        setting: Setting,
        stop: Stop,
        watch: Watch,
        show: Callable[[str], None] | None,
        *,
        reference: torch.Tensor | None = None,
    ) -> _Answer:
        options: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([_StopAsked(stop)])}
        if show is not None:
            options["streamer"] = _Streamer(self.loaded.processor.tokenizer, show)
        with self._pruning(setting):
            stop.check()
            ids = generate(self.loaded, inputs, ask.max_new_tokens, **options)
            watch.close()
            stop.check()
            agreement = None if reference is None else self._log_probability(inputs, reference)
            stop.check()
            seconds = first_token_seconds(self.loaded, inputs) if show is not None else math.nan
            report = self._report()
        return _Answer(run_of(report, answer_text(self.loaded, ids), seconds), ids, report, agreement)

    def _log_probability(self, inputs: Any, answer: torch.Tensor) -> float:
        """Of an answer, decoded as it would be if the model chose these tokens itself."""
        length = inputs["input_ids"].shape[1]
        output = generate(
            self.loaded,
            inputs,
            len(answer),
            logits_processor=[_Forced(answer, length)],
            output_logits=True,
            return_dict_in_generate=True,
        )
        rows = torch.stack([logits[0] for logits in output.logits]).double().log_softmax(dim=-1)
        return float(rows.gather(1, answer[: len(rows), None].to(rows.device)).sum())

    def _seen(
        self, ask: Ask, inputs: Any, layouts: Sequence[ImageLayout]
    ) -> Iterator[Image.Image | tuple[Image.Image, ...]]:
        # A model of one view crops the picture; of several views the tokens cover all of it.
        cropped = all(layout.views == 1 for layout in layouts) and len(layouts) == len(ask.pictures)
        for number, picture in enumerate(ask.pictures):
            seen = seen_picture(inputs, self.loaded.processor, number) if cropped else None
            if seen is None:
                seen = _smaller(picture)
            yield seen
        if ask.film:
            yield tuple(map(_smaller, ask.film))


def _smaller(picture: Image.Image) -> Image.Image:
    """A copy that can be kept for as long as the visitor stays."""
    copy = picture.copy()
    copy.thumbnail((_SHOWN, _SHOWN))
    return copy


@dataclass(frozen=True)
class _Item(Generic[FoundT]):
    value: FoundT


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class _StopAsked(StoppingCriteria):
    """Ends an answer at the next token when the visitor asked to stop."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.stop.asked, device=input_ids.device, dtype=torch.bool)


class _Streamer(TextStreamer):
    """Shows an answer as far as it has come."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.show(self.text.strip())


class _Forced(LogitsProcessor):
    """Leaves the model no choice but a given answer."""

    def __init__(self, answer: torch.Tensor, length: int) -> None:
        self.answer, self.length = answer, length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -math.inf)
        forced[:, self.answer[input_ids.shape[1] - self.length]] = 0
        return forced


@contextmanager
def _explaining() -> Iterator[None]:
    """Turns what can go wrong with a question into words for the visitor."""
    try:
        yield
    except (DemoError, Stopped):
        raise
    except torch.OutOfMemoryError as error:
        torch.accelerator.empty_cache()
        raise DemoError("Out of memory: ask about fewer or smaller pictures, or for a shorter answer.") from error
    except MemoryError as error:
        raise DemoError("Out of memory: ask about fewer or smaller pictures, or for a shorter answer.") from error
    except (ValueError, TypeError) as error:
        raise DemoError(" ".join(str(error).split()) or type(error).__name__) from error
