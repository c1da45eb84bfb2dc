"""lmms-eval's own chat classes with pruned visual tokens, under ids such as `vtprune_llava_hf`.

They load the model and build the prompts as lmms-eval does, so that a table made with `--model llava_hf` continues
with pruned rows: `lmms-eval --model vtprune_llava_hf --model_args pretrained=...,pruner=divprune,budget=64`. The plain
id `vtprune` (`vtprune.eval.lmms`) takes every model family instead and any batch size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Literal
from unittest import mock

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from transformers import AutoModelForImageTextToText

import vtprune
from vtprune.eval.lmms import VtpruneModel, parse_pruning, positive, visible_tokens
from vtprune.eval.lmms_manifests import SHIPPED, Shipped
from vtprune.eval.models import LoadedModel

# A model that fails so often before its first answer will not come to itself.
_HOPELESS = 5


def __getattr__(name: str) -> type:
    """Makes the class that lmms-eval asks for: the shipped modules are slow to import, and some need extras."""
    for shipped in SHIPPED.values():
        if shipped.class_name == name:
            return pruned_class(shipped)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def pruned_class(shipped: Shipped) -> type:
    """A subclass of a shipped chat class that takes pruning options beside its own arguments.

    `pruner`, `budget`, `budget_kind`, `budget_per`, `positions` and `text_tower` are those of
    `vtprune.eval.lmms.VtpruneModel`; arguments that the shipped class does not know are hyper-parameters of the method.

    Raises:
        ImportError: The shipped class needs a package that is not there.
    """
    base: Any = getattr(import_module(shipped.module), shipped.name)
    own = set(inspect.signature(base.__init__).parameters) - {"self", "kwargs"}

    class Pruned(base):  # type: ignore[misc]
        is_simple = False

        def __init__(
            self,
            pruner: str | None = None,
            budget: int | float | str | None = None,
            budget_kind: str | None = None,
            budget_per: str = "image",
            positions: Literal["keep", "pack"] | None = None,
            text_tower: str | None = None,
            batch_size: int | str = 1,
            **arguments: Any,
        ) -> None:
            options = {name: arguments.pop(name) for name in list(arguments) if name not in own}
            method, allowance = parse_pruning(pruner, budget, budget_kind, budget_per, options)
            size = positive(batch_size)
            with _with_head(shipped):
                super().__init__(batch_size=1, **_placed(arguments, own))
            self.batch_size_per_gpu = size
            processor = getattr(self, "processor", None) or self._image_processor
            processor.tokenizer.padding_side = "left"
            self._runner = VtpruneModel(
                LoadedModel(arguments.get("pretrained", shipped.name), self.model, processor, text_tower),
                batch_size=size,
            )
            if method is not None and allowance is not None:
                self._runner.prune(method, allowance, positions)
            self._calls: list[Exception | None] = []
            self.model.generate = self._counted(self.model.generate)

        def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
            """Answers all requests, in their order.

            Raises:
                RuntimeError: A generation failed; the shipped classes would score it as a wrong answer.
            """
            if self.batch_size > shipped.most_at_once:
                self._runner.task_dict = self.task_dict
                found: list[GenerationResult] = self._runner.generate_until(requests)
                return found
            self._calls.clear()
            answers: list[GenerationResult | None] = [None] * len(requests)
            for numbers in self._runner.batches(requests):
                batch = super().generate_until([requests[number] for number in numbers])
                seen = self._seen(len(numbers))
                for number, answer in zip(numbers, batch, strict=True):
                    answers[number] = _counting(answer, seen)
                if len(self._calls) == _HOPELESS and all(self._calls):
                    break
            failures = [error for error in self._calls if error is not None]
            if failures:
                first = f"{type(failures[0]).__name__}: {' '.join(str(failures[0]).split())[:300]}"
                raise RuntimeError(f"{len(failures)} of {len(self._calls)} generations failed, the first with {first}")
            return [answer for answer in answers if answer is not None]

        def _counted(self, generate: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(generate)
            def counted(*args: Any, **kwargs: Any) -> Any:
                try:
                    output = generate(*args, **kwargs)
                except Exception as error:
                    self._calls.append(error)
                    raise
                self._calls.append(None)
                self._prompt = kwargs.get("attention_mask")
                return output

            return counted

        def _seen(self, rows: int) -> int | None:
            """Tokens of a prompt of the last batch as the language model saw them, the mean where it has several."""
            if (self._calls and self._calls[-1] is not None) or self._prompt is None:
                return None
            seen = float(self._prompt.sum())
            if self._runner.is_pruned:
                report = vtprune.report(self.model)
                for row, layouts in enumerate(report.layouts):
                    seen -= sum(layout.tokens for layout in layouts) - visible_tokens(report, row)
            return round(seen / rows)

    Pruned.__name__ = Pruned.__qualname__ = shipped.class_name
    Pruned.__doc__ = f"lmms-eval's `{shipped.name}` with pruned visual tokens; see `pruned_class`."
    return Pruned


def _with_head(shipped: Shipped) -> AbstractContextManager[object]:
    """Within, a class that looks for the model's type in the wrong list loads a model that can generate."""
    if not shipped.headless:
        return nullcontext()
    return mock.patch(f"{shipped.module}.AutoModel", AutoModelForImageTextToText)


def _placed(arguments: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """The arguments with a device for the model where none is named: the shipped defaults fit CUDA alone."""
    device = str(arguments.get("device") or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    placed = {"device": device, "device_map": device, **{k: v for k, v in arguments.items() if v is not None}}
    return {name: value for name, value in placed.items() if name in own}


def _counting(answer: GenerationResult, seen: int | None) -> GenerationResult:
    if seen is None:
        return answer
    output = answer.token_counts.output_tokens if answer.token_counts is not None else None
    return GenerationResult(text=answer.text, token_counts=TokenCounts(input_tokens=seen, output_tokens=output))
