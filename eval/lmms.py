"""lmms-eval runs a pruned model: `lmms-eval --model vtprune --model_args pretrained=...,pruner=divprune,budget=64`.

lmms-eval finds the class by the entry point `lmms_eval.models`. It is built on lmms-eval's bare interface and not on
one of its ready classes: those fix bfloat16 and "cuda", allow one question at a time, or log a failed generation and
score it as a wrong answer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages

import vtprune
from vtprune.budget import Budget
from vtprune.eval.memo import EncoderMemo
from vtprune.eval.models import EMBEDDED, LoadedModel, load
from vtprune.eval.processes import share
from vtprune.eval.timing import time_one
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner, Signal
from vtprune.reporting import Report

PREFILL_BATCH = 8
"""Questions whose time to the first token is measured together, at most."""

_MAX_NEW_TOKENS = 1024
_ENCODER_STATES = {Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS}
_WHOLE_ENCODER = {Signal.ENCODER_LAYERS, Signal.PIXELS}
_VISUAL_INPUTS = {"pixel_values", "pixel_values_videos"}


@dataclass(frozen=True)
class Prefill:
    """How long a batch takes to its first token, the pictures' encoding and the selection included.

    Args:
        seconds: For each prompt, the median of several runs.
        batch: Prompts together.
    """

    seconds: float
    batch: int


@dataclass
class Tally:
    """What the prompts of one or more batches cost, summed up.

    `kept_by_question` holds for each document's number the tokens of its pictures that are left in the end (`None`
    where all are; a merged token is that which stands for its group) and rows and columns of the pictures' tokens
    (`None` where they are no one rectangle).
    """

    prompts: int = 0
    images: int = 0
    tokens: int = 0
    kept: int = 0
    average: float = 0.0
    prefill_flops: int = 0
    kv_bytes: int = 0
    generated: int = 0
    seconds: float = 0.0
    positions: str | None = None
    layers: int | None = None
    kept_by_question: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, report: Report, generated: int, seconds: float, questions: Sequence[int] = ()) -> None:
        """Counts one batch; `questions` are the documents that its rows ask about."""
        for row, number in enumerate(questions):
            self.kept_by_question[number] = _kept(report, row)
        self.prompts += report.batch
        self.images += report.images
        self.tokens += report.visual_tokens
        self.kept += report.stages[-1].after if report.stages else report.visual_tokens
        self.average += report.average_tokens * report.images
        self.prefill_flops += report.prefill_flops
        self.kv_bytes += report.kv_bytes
        self.generated += generated
        self.seconds += seconds
        self.positions = report.positions
        self.layers = len(report.tokens_per_layer)

    def merge(self, other: Tally) -> None:
        """Counts what another process did."""
        for name in ("prompts", "images", "tokens", "kept", "average", "prefill_flops", "kv_bytes", "generated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        # They work at the same time.
        self.seconds = max(self.seconds, other.seconds)
        self.positions = self.positions or other.positions
        self.layers = self.layers or other.layers
        self.kept_by_question |= other.kept_by_question


def _kept(report: Report, row: int) -> dict[str, Any]:
    layouts = report.layouts[row]
    left = report.stages[-1].images[row] if report.stages else [None] * len(layouts)
    return {
        "kept": [None if tokens is None else tokens.tolist() for tokens in left],
        "grid": [_rectangle(layout) for layout in layouts],
    }


def _rectangle(layout: ImageLayout) -> list[int] | None:
    if len(layout.segments) != 1 or layout.segments[0].newline:
        return None
    return [layout.segments[0].height, layout.segments[0].width]


def visible_tokens(report: Report, row: int) -> float:
    """Visual tokens of one prompt that the language model sees, as the mean over its layers."""
    start = sum(layout.tokens for layout in report.layouts[row])
    depth = len(report.tokens_per_layer)
    counts = [start] * depth
    for stage in report.stages:
        counts[stage.layer :] = [sum(map(len, stage.images[row]))] * (depth - stage.layer)
    return sum(counts) / depth


class VtpruneModel(lmms):  # type: ignore[misc]
    """A chat model with pruned visual tokens, for any model that vtprune wraps.

    Args:
        pretrained: `"embedded"`, a folder, a hub id, or a model that is already loaded.
        pruner: Name of a method; `None` leaves the model as it is.
        budget: Value of the budget.
        budget_kind: `tokens`, `ratio`, `average` or `flops`; by default an integer is tokens and a float a ratio.
        budget_per: `image`, `view` or `prompt`.
        positions: `keep` or `pack`; the method's own default if `None`.
        dtype: Number type of the weights, `auto` for that of the checkpoint.
        device: Such as `cuda:0`; by default the accelerator, if there is one.
        batch_size: Prompts generated together, padded on the left.
        attn_implementation: Attention implementation of transformers.
        trust_remote_code: Run code from the model's folder.
        text_tower: CLIP text tower for methods that need one, see `vtprune.wrap`; by default the one that fits.
        system_prompt: Text, or a file with the text, for the system turn.
        on_batch: Called after each batch with the number of prompts in it.
        options: Hyper-parameters of the method.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | LoadedModel = EMBEDDED,
        pruner: str | Pruner | None = None,
        budget: int | float | str | Budget | None = None,
        budget_kind: str | None = None,
        budget_per: str = "image",
        positions: Literal["keep", "pack"] | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        text_tower: str | None = None,
        system_prompt: str | None = None,
        on_batch: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size = positive(batch_size)
        method, allowance = parse_pruning(pruner, budget, budget_kind, budget_per, options)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # Started by `accelerate launch`: lmms-eval gives each process its part of the questions.
            self.accelerator = Accelerator(cpu=device == "cpu")
            device = device or str(self.accelerator.device)
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if isinstance(pretrained, str):
            pretrained = load(
                pretrained,
                device=device,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                text_tower=text_tower,
            )
        elif text_tower is not None:
            pretrained = replace(pretrained, text_tower=text_tower)
        self.loaded = pretrained
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else None
        self.on_batch = on_batch
        self.tally = Tally()
        self._first: list[tuple[Any, ...]] = []
        self.memo = EncoderMemo(self.model, limit=0)
        self._inputs: dict[tuple[Any, ...], Any] = {}
        self._inputs_limit = 0
        self._pruned = False
        self._looks_at_attention = False
        self._sees_whole_encoder = False
        if method is not None and allowance is not None:
            self.prune(method, allowance, positions)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.loaded.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.loaded.device

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def reuse_between_cells(self, limit: int = 1 << 30) -> None:
        """Keeps processed inputs and encoder states of each batch, each up to `limit` bytes.

        For a model that answers the same questions again under other methods and budgets.
        """
        self.memo = EncoderMemo(self.model, limit)
        self._inputs_limit = limit

    def prune(self, method: Pruner, budget: Budget, positions: Literal["keep", "pack"] | None = None) -> None:
        """Replaces the method and budget; counting starts anew."""
        self.unwrap()
        self.tally = Tally()
        vtprune.wrap(
            self.model,
            method,
            budget,
            positions=positions,
            text_tower=self.loaded.text_tower,
            processor=self.loaded.processor,
        )
        self._pruned = True
        self._looks_at_attention = bool(method.signals & _ENCODER_STATES)
        self._sees_whole_encoder = bool(method.signals & _WHOLE_ENCODER)

    def unwrap(self) -> None:
        """Gives the model back as it was before `prune`."""
        if self._pruned:
            vtprune.unwrap(self.model)
            self._pruned = False

    def clean(self) -> None:
        """Keeps the model: lmms-eval would delete it after each evaluation, but the next cell needs it."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: no current image task of lmms-eval asks chat models for it."""
        raise NotImplementedError("vtprune answers generate_until tasks only; choose a task that generates")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("vtprune answers single-round tasks only; choose a task of type generate_until")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers all requests, in their order. A failure is raised: it must not pass for a wrong answer.

        As in lmms-eval's own chat classes an answer ends at the end-of-sequence token or after `max_new_tokens`; the
        task's `until` strings, made for base models, are not applied.
        """
        answers: list[GenerationResult | None] = [None] * len(requests)
        before = self.tally.generated, self.tally.seconds
        self._first = [request.args for request in requests[:PREFILL_BATCH]]
        with self._failing_together():
            for numbers in self.batches(requests):
                batch = self._answer([requests[number].args for number in numbers])
                for number, answer in zip(numbers, batch, strict=True):
                    answers[number] = answer
                if self.on_batch is not None:
                    self.on_batch(len(numbers))
        tokens, seconds = self.tally.generated - before[0], self.tally.seconds - before[1]
        log_metrics(total_gen_tokens=tokens, total_elapsed_time=seconds, avg_speed=tokens / seconds if seconds else 0)
        return [answer for answer in answers if answer is not None]

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        """Within, what fails in one process fails in all: those that went on would wait for it forever."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self._world_size == 1:
                raise
            error = raised
        if self._world_size > 1:
            for process, text in enumerate(share(None if error is None else f"{type(error).__name__}: {error}")):
                if text is not None:
                    raise RuntimeError(f"process {process} of {self._world_size} failed with {text}") from error

    def shared_tally(self) -> Tally:
        """The costs of all processes together."""
        if self._world_size == 1:
            return self.tally
        total = Tally()
        for tally in share(self.tally):
            total.merge(tally)
        return total

    def time_prefill(self, repeats: int) -> Prefill | None:
        """Times the first questions of the last task up to their first token, at most `PREFILL_BATCH` together.

        Nothing is reused from before; inputs are on the device already. `None` where there were no questions.
        """
        if not self._first:
            return None
        inputs = self._process(self._first)

        def first_token() -> None:
            with torch.inference_mode():
                self.model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=self._pad_token_id)

        milliseconds = time_one(first_token, self.device, repeats=repeats, warmup=1).median
        return Prefill(seconds=milliseconds / 1e3 / len(self._first), batch=len(self._first))

    @property
    def is_pruned(self) -> bool:
        """Whether a method is at work."""
        return self._pruned

    def batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Numbers of the requests that are answered together."""
        return _batches([request.args[2] for request in requests], self.batch_size)

    def _memo_for(self, key: Hashable) -> AbstractContextManager[None]:
        if self._sees_whole_encoder:
            return nullcontext()  # the memo skips all but one layer
        return self.memo.batch(key, attention=self._looks_at_attention)

    def _answer(self, batch: Sequence[tuple[Any, ...]]) -> list[GenerationResult]:
        # args: context, doc_to_messages, generation arguments, doc id, task, split
        key = tuple((task, split, doc_id) for _, _, _, doc_id, task, split in batch)
        inputs = self._inputs_of(key, batch)
        arguments = _generation_arguments(batch[0][2])
        start = time.perf_counter()
        with torch.inference_mode(), self._memo_for(key):
            output = self.model.generate(**inputs, **arguments, pad_token_id=self._pad_token_id)
            new = output[:, inputs["input_ids"].shape[1] :].cpu()
        seconds = time.perf_counter() - start
        texts = self.loaded.processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        lengths = _lengths(new, self._end_tokens)
        prompts = _prompt_lengths(inputs)
        if self._pruned and _VISUAL_INPUTS & inputs.keys():
            report = vtprune.report(self.model)
            self.tally.add(report, sum(lengths), seconds, [question[3] for question in batch])
            removed = [
                sum(layout.tokens for layout in report.layouts[row]) - visible_tokens(report, row)
                for row in range(len(batch))
            ]
            prompts = [round(prompt - gone) for prompt, gone in zip(prompts, removed, strict=True)]
        else:
            self.tally.generated += sum(lengths)
            self.tally.seconds += seconds
        return [
            GenerationResult(text=text, token_counts=TokenCounts(input_tokens=prompt, output_tokens=length))
            for text, prompt, length in zip(texts, prompts, lengths, strict=True)
        ]

    def _inputs_of(self, key: tuple[Any, ...], batch: Sequence[tuple[Any, ...]]) -> Any:
        if key not in self._inputs:
            inputs = self._process(batch)
            size = sum(value.nbytes for value in inputs.values() if isinstance(value, torch.Tensor))
            if size > self._inputs_limit:
                return inputs
            self._inputs_limit -= size
            self._inputs[key] = inputs
        return self._inputs[key]

    def _process(self, batch: Sequence[tuple[Any, ...]]) -> Any:
        conversations = []
        for _, to_messages, _, doc_id, task, split in batch:
            messages = to_messages(self.task_dict[task][split][doc_id])
            if self.system_prompt:
                messages = self._apply_system_prompt(messages, self.system_prompt)
            conversations.append(ChatMessages(messages=messages).to_hf_messages())
        inputs = self.loaded.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
        )
        return inputs.to(self.device, dtype=self.model.dtype)

    @property
    def _pad_token_id(self) -> int | None:
        token: int | None = self.loaded.processor.tokenizer.pad_token_id
        return token

    @property
    def _end_tokens(self) -> set[int]:
        end = self.model.generation_config.eos_token_id
        if end is None:
            end = self.loaded.processor.tokenizer.eos_token_id
        return set() if end is None else {end} if isinstance(end, int) else set(end)


def positive(batch_size: int | str) -> int:
    """Reads a batch size.

    Raises:
        ValueError: It is no whole number of at least 1.
    """
    try:
        size = int(batch_size)
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    return size


def parse_pruning(
    pruner: str | Pruner | None,
    budget: int | float | str | Budget | None,
    kind: str | None,
    per: str,
    options: Mapping[str, Any],
) -> tuple[Pruner | None, Budget | None]:
    """Reads the pruning arguments of lmms-eval's `--model_args`; both results are `None` for the model as it is.

    Raises:
        ValueError: A method without a budget or the other way round, or a value out of range.
        TypeError: Hyper-parameters that the method does not have, or without a method.
    """
    if (pruner is None) != (budget is None):
        raise ValueError(f"pruner and budget go together, got pruner={pruner!r} and budget={budget!r}")
    if pruner is None or budget is None:
        if options:
            raise TypeError(f"unknown arguments {', '.join(sorted(options))}; hyper-parameters need a pruner")
        return None, None
    return vtprune.make_pruner(pruner, **options), _budget(budget, kind, per)


def _budget(value: int | float | str | Budget, kind: str | None, per: str) -> Budget:
    if kind is None and per == "image":
        return Budget.parse(value)
    if kind is None:
        kind = "ratio" if isinstance(value, float) else "tokens"
    arguments: dict[str, Any] = {kind: value, "per": per}
    if kind not in ("tokens", "ratio", "average", "flops"):
        raise ValueError(f"budget_kind must be tokens, ratio, average or flops, got {kind!r}")
    return Budget(**arguments)


def _batches(generation: Sequence[dict[str, Any]], size: int) -> Iterator[list[int]]:
    """Numbers of the requests that go together: neighbours with the same generation arguments."""
    groups: dict[str, list[int]] = {}
    for number, arguments in enumerate(generation):
        groups.setdefault(json.dumps(arguments, sort_keys=True, default=str), []).append(number)
    for numbers in groups.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _generation_arguments(task: dict[str, Any]) -> dict[str, Any]:
    temperature = float(task.get("temperature") or 0)
    sample = bool(task.get("do_sample", temperature > 0)) and temperature > 0
    return {
        "max_new_tokens": int(task.get("max_new_tokens") or _MAX_NEW_TOKENS),
        "num_beams": int(task.get("num_beams") or 1),
        "do_sample": sample,
        "temperature": temperature if sample else None,
        "top_p": task.get("top_p") if sample else None,
        "top_k": task.get("top_k") if sample else None,
    }


def _prompt_lengths(inputs: Any) -> list[int]:
    mask = inputs.get("attention_mask")
    if mask is None:
        rows, length = inputs["input_ids"].shape
        return [length] * rows
    counts: list[int] = mask.sum(dim=1).tolist()
    return counts


def _lengths(new: torch.Tensor, ends: set[int]) -> list[int]:
    """Generated tokens of each row, its end-of-sequence token included and the padding behind it not."""
    lengths = []
    for row in new.tolist():
        first = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        lengths.append(first + 1)
    return lengths
