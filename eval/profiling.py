"""Measures one prompt on one model: unpruned, pruned, and fed as few tokens as the pruned one, kernel by kernel and
from CUDA graphs.

The ideal is the same model doing the same vision work and then running its decoder on as many tokens as each layer of
the pruned one sees, as if they had always been so few: with nothing to select, gather or hook.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn
from transformers import StaticCache

import vtprune
from vtprune.adapters import find_adapter
from vtprune.api import attached_engine
from vtprune.budget import Budget
from vtprune.costs import kv_bytes, prefill_flops
from vtprune.engine.cache_names import CACHE, CACHE_NAMES, cache_in
from vtprune.engine.capture import Pool, Recorded, tensors_in
from vtprune.engine.engine import Engine
from vtprune.eval.timing import Laps, Timing, phases_in_turns, synchronize
from vtprune.pruner import Pruner
from vtprune.reporting import Report

FULL, PRUNED, IDEAL = "full", "pruned", "ideal"
EAGER, GRAPH = "eager", "graph"

_ROOM = 4
"""Slots of static caches beyond those that are decoded."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        repeats: Timed rounds.
        warmup: Rounds before them.
        decode_tokens: Tokens that are decoded in each round after the first one; 0 for none.
        graph: Whether to measure with recorded CUDA graphs too.
        static: Whether to decode on a static cache; recorded decoding needs one.
        positions: `"keep"`, `"pack"` or `None` for each method's own default.
    """

    repeats: int = 20
    warmup: int = 3
    decode_tokens: int = 8
    graph: bool = False
    static: bool = False
    positions: Any = None


@dataclass(frozen=True)
class Measured:
    """Milliseconds and bytes of one way to run a prompt.

    Args:
        vision: Vision tower, projector and embedding of the prompt; `None` where the model does not separate them.
        prefill: The language model up to the logits of the first token, with the selection in it.
        first_token: Both: from pixels to logits.
        decode: One further token; `None` if that was not measured.
        peak_bytes: Most memory in use above what was in use before, weights included there; `None` without CUDA.
        kv_bytes: Keys and values that the prefill really left in the cache.
    """

    vision: Timing | None
    prefill: Timing
    first_token: Timing
    decode: Timing | None
    peak_bytes: int | None
    kv_bytes: int


@dataclass(frozen=True)
class RowResult:
    """One method at one budget and batch size.

    Args:
        text_tokens: Tokens of a prompt that are no visual ones.
        tokens: Visual tokens of an image.
        keep: Visual tokens of an image after the last stage, in the mean.
        lengths: Tokens of a prompt that each decoder layer of the pruned model sees.
        average_tokens: Visual tokens of an image, in the mean over the decoder layers.
        flops: Of the language model's prefill: unpruned and pruned, as `vtprune.costs` counts them.
        nominal_kv_bytes: Of the unpruned and the pruned prompt, as `vtprune.costs` counts them.
        selection: The method's own choice alone, all its stages, signals that a stage keeps at hand.
        recorded_selection: The same from a CUDA graph.
        measured: By mode (`"eager"`, `"graph"`) and by what ran (`"full"`, `"pruned"`, `"ideal"`).
        notes: Why something is missing.
    """

    text_tokens: int
    tokens: int
    keep: float
    lengths: tuple[int, ...]
    average_tokens: float
    flops: tuple[int, int]
    nominal_kv_bytes: tuple[int, int]
    selection: Timing
    recorded_selection: Timing | None
    measured: dict[str, dict[str, Measured]]
    notes: dict[str, str] = field(default_factory=dict)


class Prompt:
    """A batch of prompts for a model, and what the model hands on when it takes them in.

    Args:
        model: The model, not wrapped.
        inputs: What its forward takes: prompts of one image each, without padding.
        settings: How to measure.
        wrapping: Further arguments of `vtprune.wrap`.
    """

    def __init__(
        self, model: nn.Module, inputs: dict[str, Any], settings: Settings, wrapping: dict[str, Any] | None = None
    ) -> None:
        self.model: Any = model
        self.inputs = inputs
        self.settings = settings
        self.wrapping = wrapping or {}
        self.adapter = find_adapter(model)
        self.device: torch.device = inputs["input_ids"].device
        self.batch: int = inputs["input_ids"].shape[0]
        self.length: int = inputs["input_ids"].shape[1]
        self._encodings: list[Callable[[], Any]] = []
        self._given: dict[str, Any] = {}
        self._listen()

    @cached_property
    def pool(self) -> Pool:
        """Memory that recordings of the unwrapped model share."""
        return Pool()

    @cached_property
    def visual_tokens(self) -> int:
        """Visual tokens of one prompt."""
        tokens = torch.tensor([placeholder.token for placeholder in self.adapter.placeholders], device=self.device)
        return int(torch.isin(self.inputs["input_ids"], tokens).sum()) // self.batch

    @property
    def text_tokens(self) -> int:
        """Tokens of one prompt that are no visual ones."""
        return self.length - self.visual_tokens

    @cached_property
    def recorded_full(self) -> Inspected:
        """The unwrapped model, recorded once for all methods."""
        return _inspect(self.device, lambda: Replayed(self, [self.length] * self.adapter.depths.decoder))

    def call(self, cache: Any = None) -> tuple[Any, torch.Tensor]:
        """A prefill by the model itself, wrapped or not: its cache and the next token of each row."""
        given = {} if cache is None else {CACHE: cache}
        output = self.model(**self.inputs, **given, use_cache=True, logits_to_keep=1)
        return cache_in(output), next_token(output.logits)

    def step(self, cache: Any, token: torch.Tensor) -> torch.Tensor:
        """Decodes one token."""
        output = self.model(input_ids=token, use_cache=True, **{CACHE: cache})
        return next_token(output.logits)

    def static_cache(self, lengths: Sequence[int]) -> Any:
        """An empty static cache with room for prompts of these lengths and what is decoded after them."""
        cache: Any = StaticCache(
            config=self.model.config.get_text_config(decoder=True), max_cache_len=self._room(lengths[0])
        )
        for layer, length in zip(cache.layers, lengths, strict=True):
            layer.max_cache_len = self._room(length)
        return cache

    def encode(self) -> None:
        """The vision side alone."""
        for encode in self._encodings:
            encode()

    def decoder_arguments(self, length: int) -> dict[str, Any]:
        """What the decoder is given, for a prompt of another length, without padding.

        Raises:
            ValueError: The decoder embeds the prompt itself, so that it cannot be fed.
        """
        embeddings = self._given.get("inputs_embeds")
        if embeddings is None:
            raise ValueError(f"the decoder of {type(self.model).__name__} cannot be fed by itself")
        columns = torch.arange(length, device=embeddings.device) % embeddings.shape[1]
        arguments = {name: value for name, value in self._given.items() if not tensors_in(value)}
        for name in (*CACHE_NAMES, "attention_mask"):
            arguments.pop(name, None)
        arguments |= {"inputs_embeds": embeddings[:, columns], "use_cache": True}
        positions = self._given.get("position_ids")
        if isinstance(positions, torch.Tensor):
            arguments["position_ids"] = positions[..., columns]
        return arguments

    def _room(self, length: int) -> int:
        return length + self.settings.decode_tokens + _ROOM

    @torch.no_grad()
    def _listen(self) -> None:
        """Runs the model once and takes down what its parts are called with."""
        base, decoder = self.adapter.base, self.adapter.decoder
        methods = {placeholder.encode for placeholder in self.adapter.placeholders}
        inside = False

        def spied(method: str) -> Callable[..., Any]:
            original = getattr(base, method)

            def encode(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                if inside:
                    return original(*args, **kwargs)
                self._encodings.append(lambda: original(*args, **kwargs))
                inside = True
                try:
                    return original(*args, **kwargs)
                finally:
                    inside = False

            return encode

        def take_down(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._given = dict(kwargs)

        base.__dict__.update({method: spied(method) for method in methods})
        handle = None if decoder is base else decoder.register_forward_pre_hook(take_down, with_kwargs=True)
        try:
            self.call()
        finally:
            for method in methods:
                base.__dict__.pop(method)
            if handle is not None:
                handle.remove()


class Subject(Protocol):
    """A way to run a prompt."""

    def ready(self) -> AbstractContextManager[object]:
        """Context in which it runs."""
        ...

    def first_token(self, laps: Laps) -> tuple[Any, torch.Tensor]:
        """From pixels to the first token, marking the end of the vision side: the cache and the token."""
        ...

    def filled(self) -> tuple[Any, torch.Tensor]:
        """A static cache with the prompt in it, and the first token."""
        ...

    def step(self, cache: Any, token: torch.Tensor) -> torch.Tensor:
        """Decodes one token."""
        ...


@dataclass(frozen=True)
class Inspected:
    """A subject after its first run: the most memory that took, and the bytes in its cache after the prefill."""

    subject: Subject
    peak_bytes: int | None
    kv_bytes: int


class Stock:
    """The model as transformers calls it, unwrapped.

    Args:
        prompt: The prompt.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._laps: Laps | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """With a hook that tells when the language model begins."""
        adapter = self._prompt.adapter
        module = adapter.layers[0] if adapter.decoder is adapter.base else adapter.decoder
        handle = module.register_forward_pre_hook(self._enter, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def first_token(self, laps: Laps) -> tuple[Any, torch.Tensor]:
        """One call of the model."""
        self._laps = laps
        return self._prompt.call()

    def filled(self) -> tuple[Any, torch.Tensor]:
        """One call of the model with a static cache."""
        prompt = self._prompt
        return prompt.call(prompt.static_cache([prompt.length] * prompt.adapter.depths.decoder))

    def step(self, cache: Any, token: torch.Tensor) -> torch.Tensor:
        """One call of the model."""
        return self._prompt.step(cache, token)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        laps, self._laps = self._laps, None
        if laps is not None:
            laps.mark("vision")


class Wrapped(Stock):
    """The model with a method's hooks around it.

    Args:
        prompt: The prompt.
        engine: The hooks.
    """

    def __init__(self, prompt: Prompt, engine: Engine) -> None:
        super().__init__(prompt)
        self.engine = engine

    @contextmanager
    def ready(self) -> Iterator[None]:
        """With the hooks in place; what the engine has recorded stays when they are removed."""
        with attached(self.engine), super().ready():
            yield

    @property
    def report(self) -> Report:
        """Of the last prefill."""
        assert self.engine.last_report is not None
        return self.engine.last_report


class Fed:
    """The vision side, and then the decoder on tokens of a given number at each layer.

    Args:
        prompt: The prompt.
        lengths: Tokens of a row for each decoder layer, never rising.

    Raises:
        ValueError: The model's decoder cannot be fed by itself.
    """

    def __init__(self, prompt: Prompt, lengths: Sequence[int]) -> None:
        self._prompt = prompt
        self._lengths = list(lengths)
        self._arguments = prompt.decoder_arguments(lengths[0])
        self._head: Any = prompt.model.get_output_embeddings()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """With the layers that see fewer tokens than the first one shortening what they get."""
        handles = [
            layer.register_forward_pre_hook(_shorten(length, self._lengths[0]), with_kwargs=True)
            for layer, length in zip(self._prompt.adapter.layers, self._lengths, strict=True)
            if length < self._lengths[0]
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def language(self, cache: Any = None) -> tuple[Any, torch.Tensor]:
        """The decoder and its head."""
        given = {} if cache is None else {CACHE: cache}
        output = self._prompt.adapter.decoder(**self._arguments, **given)
        return cache_in(output), next_token(self._head(output.last_hidden_state[:, -1:]))

    def first_token(self, laps: Laps) -> tuple[Any, torch.Tensor]:
        """The vision side, whose output nobody uses, and the decoder."""
        self._prompt.encode()
        laps.mark("vision")
        return self.language()

    def filled(self) -> tuple[Any, torch.Tensor]:
        """The decoder on a static cache whose layers are as long as what they hold."""
        return self.language(self._prompt.static_cache(self._lengths))

    def step(self, cache: Any, token: torch.Tensor) -> torch.Tensor:
        """One call of the model."""
        return self._prompt.step(cache, token)


class Replayed:
    """The same from CUDA graphs: one of the vision side, one of the decoder and, on a static cache, one of a step.

    Args:
        prompt: The prompt.
        lengths: Tokens of a row for each decoder layer.

    Raises:
        Exception: Whatever cannot be recorded raises.
    """

    def __init__(self, prompt: Prompt, lengths: Sequence[int]) -> None:
        self._fed = fed = Fed(prompt, lengths)
        with fed.ready():
            self._vision = Recorded(prompt.encode, prompt.pool)
            self._language = Recorded(fed.language, prompt.pool)
            if prompt.settings.static and prompt.settings.decode_tokens:
                with torch.inference_mode(False), torch.no_grad():
                    self._cache, self._token = fed.filled()
                self._counts = [layer.cumulative_length for layer in self._cache.layers]
                self._begin = [count.clone() for count in self._counts]
                self._step = Recorded(self._advance, prompt.pool, warmup=1)

    def ready(self) -> AbstractContextManager[None]:
        """As what was recorded."""
        return self._fed.ready()

    def first_token(self, laps: Laps) -> tuple[Any, torch.Tensor]:
        """Two replays."""
        self._vision.replay()
        laps.mark("vision")
        return self._language.replay()

    def filled(self) -> tuple[Any, torch.Tensor]:
        """The cache as it was after the prompt."""
        torch._foreach_copy_(self._counts, self._begin)
        return self._cache, self._token

    def step(self, cache: Any, token: torch.Tensor) -> torch.Tensor:
        """One replay."""
        return self._step.replay()

    def _advance(self) -> torch.Tensor:
        return self._token.copy_(self._fed.step(self._cache, self._token))


def next_token(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token after the last position, `(batch, 1)`."""
    return logits[:, -1:].argmax(-1)


@contextmanager
def attached(engine: Engine) -> Iterator[None]:
    """A model with the hooks of an engine that was made for it."""
    engine.attach()
    try:
        yield
    finally:
        engine.detach()


def engine_of(model: nn.Module, pruner: Pruner, budget: Budget, **options: Any) -> Engine:
    """What `vtprune.wrap` would put around a model, not attached.

    Raises:
        ValueError: As `vtprune.wrap`.
    """
    vtprune.wrap(model, pruner, budget, **options)
    engine = attached_engine(model)
    vtprune.unwrap(model)
    assert engine is not None
    return engine


@torch.no_grad()
def measure_row(
    prompt: Prompt, pruner: Pruner, budget: Budget, advance: Callable[[], object] | None = None
) -> RowResult:
    """Measures a method and a budget against the unpruned model and the ideal, all in turns.

    Args:
        prompt: The prompts.
        pruner: The method.
        budget: How many tokens stay.
        advance: Called after every round.

    Raises:
        ValueError: Method, budget and model do not go together.
        torch.OutOfMemoryError: The device is too small.
    """
    settings = prompt.settings
    options = {"images_per_prompt": 1, "positions": settings.positions, **prompt.wrapping}
    engine = engine_of(prompt.model, pruner, budget, **options)
    pruned = Wrapped(prompt, engine)
    with pruned.ready():
        prompt.call()
    report = pruned.report
    lengths = report.lengths
    found: dict[tuple[str, str], Inspected] = {}
    notes: dict[str, str] = {}

    def enter(mode: str, what: str, make: Callable[[], Inspected]) -> None:
        with _noting(notes, f"{mode} {what}"):
            found[mode, what] = make()

    enter(EAGER, FULL, lambda: _inspect(prompt.device, lambda: Stock(prompt)))
    enter(EAGER, PRUNED, lambda: _inspect(prompt.device, lambda: pruned))
    enter(EAGER, IDEAL, lambda: _inspect(prompt.device, lambda: Fed(prompt, lengths)))
    if settings.graph:
        enter(GRAPH, FULL, lambda: prompt.recorded_full)
        enter(GRAPH, PRUNED, lambda: _inspect(prompt.device, lambda: _recorded_engine(prompt, pruner, budget, options)))
        enter(GRAPH, IDEAL, lambda: _inspect(prompt.device, lambda: Replayed(prompt, lengths)))
    runs: dict[str, Callable[[Laps], object]] = {}
    for (mode, what), inspected in found.items():
        name, subject = f"{mode} {what}", inspected.subject
        runs[name] = _run(subject, settings, decodes=False)
        if settings.decode_tokens and (mode == EAGER or settings.static):
            with _noting(notes, f"{name}, decoding"), subject.ready():
                decoding = _run(subject, settings, decodes=True)
                decoding(Laps(prompt.device))
                runs[name] = decoding
    choose = _selection(prompt, engine)
    runs["selection"] = _phase("selection", choose)
    if settings.graph and report.stages:
        with _noting(notes, "recorded selection"):
            runs["recorded selection"] = _phase("selection", Recorded(choose, prompt.pool).replay)
    around = {f"{mode} {what}": inspected.subject.ready for (mode, what), inspected in found.items()}
    times = phases_in_turns(
        runs, prompt.device, repeats=settings.repeats, warmup=settings.warmup, advance=advance, around=around
    )
    measured: dict[str, dict[str, Measured]] = {}
    for (mode, what), inspected in found.items():
        phases = times[f"{mode} {what}"]
        measured.setdefault(mode, {})[what] = Measured(
            vision=phases.get("vision"),
            prefill=phases["prefill"],
            first_token=phases["first token"],
            decode=phases["decode"].per(settings.decode_tokens) if "decode" in phases else None,
            peak_bytes=inspected.peak_bytes,
            kv_bytes=inspected.kv_bytes,
        )
    images, left = report.images, report.stages[-1].after if report.stages else report.visual_tokens
    whole = [prompt.length] * len(lengths)
    unpruned_bytes = kv_bytes(engine.shape, whole, batch=prompt.batch, bytes_per_value=prompt.model.dtype.itemsize)
    return RowResult(
        text_tokens=prompt.text_tokens,
        tokens=report.visual_tokens // images,
        keep=left / images,
        lengths=lengths,
        average_tokens=report.average_tokens,
        flops=(prefill_flops(engine.shape, whole, batch=prompt.batch), report.prefill_flops),
        nominal_kv_bytes=(unpruned_bytes, report.kv_bytes),
        selection=times["selection"]["selection"],
        recorded_selection=times.get("recorded selection", {}).get("selection"),
        measured=measured,
        notes=notes,
    )


@torch.no_grad()
def measure_curve(
    prompt: Prompt, visual: Sequence[int], advance: Callable[[], object] | None = None
) -> dict[str, dict[int, Timing]]:
    """The unwrapped language model's prefill by number of visual tokens, for each mode.

    Args:
        prompt: The prompts, whose text stays.
        visual: Numbers of visual tokens.
        advance: Called after every round.

    Raises:
        ValueError: The model's decoder cannot be fed by itself.
        torch.OutOfMemoryError: The device is too small.
    """
    settings, depth = prompt.settings, prompt.adapter.depths.decoder
    runs: dict[str, Callable[[Laps], object]] = {}
    for count in visual:
        fed = Fed(prompt, [prompt.text_tokens + count] * depth)
        runs[f"{EAGER} {count}"] = _phase("prefill", fed.language)
        if settings.graph:
            runs[f"{GRAPH} {count}"] = _phase("prefill", Recorded(fed.language, prompt.pool).replay)
    times = phases_in_turns(runs, prompt.device, repeats=settings.repeats, warmup=settings.warmup, advance=advance)
    modes = (EAGER, GRAPH) if settings.graph else (EAGER,)
    return {mode: {count: times[f"{mode} {count}"]["prefill"] for count in visual} for mode in modes}


@contextmanager
def _noting(notes: dict[str, str], name: str) -> Iterator[None]:
    """Writes down why something could not be measured, and lets the rest go on; too little memory ends it all."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model does that cannot be fed, recorded or decoded in this way
        notes[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"


def _phase(name: str, work: Callable[[], object]) -> Callable[[Laps], None]:
    def run(laps: Laps) -> None:
        work()
        laps.mark(name)

    return run


def _run(subject: Subject, settings: Settings, decodes: bool) -> Callable[[Laps], None]:
    def run(laps: Laps) -> None:
        cache, token = subject.first_token(laps)
        laps.mark("prefill", since_start="first token", wait=True)
        if not decodes:
            return
        if settings.static:
            # A cache with all its slots is not what a prefill is measured with: making it takes time of its own.
            cache, token = subject.filled()
            laps.mark(None, wait=True)
        for _ in range(settings.decode_tokens):
            token = subject.step(cache, token)
        laps.mark("decode")

    return run


def _inspect(device: torch.device, make: Callable[[], Subject]) -> Inspected:
    """Makes a subject and runs it once."""
    before = 0
    if device.type == "cuda":
        gc.collect()
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    subject = make()
    with subject.ready():
        cache, _ = subject.first_token(Laps(device))
    synchronize(device)
    peak: int | None = None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - before
    layers = getattr(cache, "layers", ())
    cached = sum(
        tensor.numel() * tensor.element_size() for layer in layers for tensor in tensors_in(list(vars(layer).values()))
    )
    return Inspected(subject, peak, cached)


def _recorded_engine(prompt: Prompt, pruner: Pruner, budget: Budget, options: dict[str, Any]) -> Subject:
    """The wrapped model after it has recorded.

    Raises:
        RuntimeError: It runs without graphs, with the reason.
    """
    subject = Wrapped(prompt, engine_of(prompt.model, pruner, budget, graph=True, **options))
    with warnings.catch_warnings(record=True) as told, subject.ready():
        warnings.simplefilter("always")
        prompt.call()
    if not subject.report.captured:
        reasons = [str(warning.message) for warning in told if "graph" in str(warning.message)]
        raise RuntimeError("; ".join(reasons) or "nothing was recorded")
    return subject


def _selection(prompt: Prompt, engine: Engine) -> Callable[[], None]:
    """Asks a method once more for all that a prefill asks of it."""
    seen: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
    pruner = engine.pruner
    names = ("reduce", "reduce_adaptive")

    def spied(name: str) -> Callable[..., Any]:
        original = getattr(pruner, name)

        def reduce(*arguments: Any) -> Any:
            seen.append((original, arguments))
            return original(*arguments)

        return reduce

    # Into the instance and past its being frozen: a class of its own would be another method to the engine.
    pruner.__dict__.update({name: spied(name) for name in names})
    try:
        with attached(engine):
            prompt.call()
    finally:
        for name in names:
            del pruner.__dict__[name]

    def choose() -> None:
        for reduce, arguments in seen:
            reduce(*arguments)

    return choose


def _shorten(length: int, whole: int) -> Callable[..., Any]:
    """A hook that gives a layer the first `length` tokens of a prompt of `whole`, and a step the mask for so few."""

    def first(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(first(part) for part in value)
        return value[..., :length, :] if isinstance(value, torch.Tensor) else value

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        prefill = hidden.shape[1] > 1
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = (
                mask[..., :length, : mask.shape[-1] - whole + length] if prefill else mask[..., whole - length :]
            )
        if not prefill:
            return args, kwargs
        kwargs["position_embeddings"] = first(kwargs.get("position_embeddings"))
        if isinstance(kwargs.get("position_ids"), torch.Tensor):
            kwargs["position_ids"] = kwargs["position_ids"][..., :length]
        if args:
            return (hidden[:, :length], *args[1:]), kwargs
        kwargs["hidden_states"] = hidden[:, :length]
        return args, kwargs

    return hook
