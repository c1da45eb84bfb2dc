"""Prefill and decoding replayed from CUDA graphs, so that a short sequence is not waited for by kernel launches.

Recorded are the vision side from tower to projector (or the tower alone, where what is around it cannot be), the
decoder's prefill with the stages and selections in it, and a decoding step on a static cache. What lies between
(embedding the prompt, filling in the image features, the head) stays as it is, and may ask the device. A recording
serves all calls whose tensors have the same shapes; prompts are filled up on the left to `Graph.bucket` tokens, which a
mask hides and which no cache and no report gets to see.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from vtprune.engine.cache_names import CACHE_NAMES, cache_in
from vtprune.engine.capture import Pool, Recorded, copies, fixed_like, is_recording, put, replaced_in, tensors_in
from vtprune.engine.decode_slots import DecodeSlots, SlotPool
from vtprune.engine.pass_inputs import Leaf, PassInputs
from vtprune.engine.replaced import replace_method
from vtprune.engine.run import Outcome, Run
from vtprune.engine.side_stream import SideStream
from vtprune.engine.static_cache import is_static, shorten_static_layers
from vtprune.engine.vision import VisionRecord
from vtprune.pruner import Signal

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine

_SEEN_THROUGH = ("output_attentions", "output_hidden_states", "output_router_logits")


@dataclass(frozen=True)
class Graph:
    """How `vtprune.wrap(..., graph=...)` records.

    Args:
        bucket: Prompts are filled up to a multiple of so many tokens, so that one recording serves several lengths;
            1 records each length by itself.
        limit: Recordings of a kind that are kept, the least recently used goes; each holds the memory of its results.

    Raises:
        TypeError: A field is no integer.
        ValueError: A field is below 1.

    Example:
        >>> Graph(bucket=32)
        Graph(bucket=32, limit=16)
    """

    bucket: int = 16
    limit: int = 16

    def __post_init__(self) -> None:
        for name in ("bucket", "limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Graph: {name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"Graph: {name} must be at least 1, got {value!r}")


class _Refused(Exception):
    """Why a pass is not recorded."""


@dataclass(frozen=True)
class _Prefill:
    """What a recorded prefill returns."""

    output: Any
    cache: Any
    outcome: Outcome


@dataclass
class Recordings:
    """The recordings of one thread; several threads may run one model, and each has memory of its own to write to.

    `is_busy` while the vision side is recorded as a whole, its tower with it.
    """

    limit: int
    slots: SlotPool = field(default_factory=SlotPool)
    side: SideStream = field(default_factory=SideStream)
    is_busy: bool = False
    _found: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)

    @cached_property
    def pool(self) -> Pool:
        """The memory that all recordings share: a thread replays one after another."""
        return Pool()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made for a key, or is made now; the reason where it could not be.

        Raises:
            _Refused: It could not be recorded, now or before.
        """
        if key not in self._found:
            try:
                self._found[key] = make()
            except Exception as error:  # whatever a model does that cannot be recorded
                first = str(error).strip().partition("\n")[0]
                # Memory that a broken recording was given is lost to it.
                self.__dict__.pop("pool", None)
                reason = str(error) if isinstance(error, _Refused) else f"{type(error).__name__}: {first}"
                self._found[key] = _Refused(reason)
            while len(self._found) > self.limit:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        found = self._found[key]
        if isinstance(found, _Refused):
            raise found
        return found


class Graphs:
    """Puts recordings in the place of the vision tower's and the decoder's forward.

    Args:
        engine: The engine of the wrapped model.
        settings: How to record.
    """

    def __init__(self, engine: Engine, settings: Graph) -> None:
        self._engine = engine
        self._settings = settings
        self._told: set[str] = set()
        self._only_whole = False

    def attach(self) -> list[Callable[[], None]]:
        """Replaces both; returns what undoes it."""
        adapter = self._engine.adapter
        undo = [self._replace_forward(adapter.decoder, self._decode_or_prefill)]
        if adapter.tower is not None:
            undo.append(self._replace_forward(adapter.tower, self._encode_in_tower))
        if hasattr(adapter.base, "get_placeholder_mask"):
            undo.append(self._replace_placeholder_mask(adapter.base))
        if hasattr(adapter.model, "get_compiled_call"):
            # `generate` would compile what is left around the recorded steps, into graphs that cannot tell whose
            # memory theirs is.
            undo.append(replace_method(adapter.model, "get_compiled_call", lambda *args: adapter.model.__call__))
        return undo

    def _replace_placeholder_mask(self, base: Any) -> Callable[[], None]:
        """The model compares on the host how many placeholders and features there are: only shapes of the latter.

        With the ids that the prompt brought along there is no need to wait for the tower, and its time is enough to
        prepare the prefill in.
        """
        original = base.get_placeholder_mask
        parameters = inspect.signature(original)

        def get_placeholder_mask(*args: Any, **kwargs: Any) -> Any:
            prompt = self._engine.local.prompt
            ids = parameters.bind(*args, **kwargs).arguments.get("input_ids")
            if ids is None or prompt is None or ids is not prompt.ids:
                return original(*args, **kwargs)
            return self._recordings.side.run(prompt, lambda: original(*args, **kwargs))

        return replace_method(base, "get_placeholder_mask", torch.compiler.disable(get_placeholder_mask))

    @staticmethod
    def _replace_forward(module: nn.Module, by: Callable[..., Any]) -> Callable[[], None]:
        original: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return by(original, *args, **kwargs)

        return replace_method(module, "forward", torch.compiler.disable(forward))

    @property
    def _recordings(self) -> Recordings:
        local = self._engine.local
        if local.recordings is None:
            local.recordings = Recordings(self._settings.limit)
        found: Recordings = local.recordings
        return found

    def _tell(self, what: str, reason: object) -> None:
        """Says once why something runs without a graph."""
        message = f"{what} runs without a graph, launch by launch: {reason}"
        if message not in self._told:
            self._told.add(message)
            warnings.warn(f"vtprune: {message}", stacklevel=2)

    def encode(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's method that encodes pictures, from tower to projector, while a record of it is open."""
        host = [value for name, value in kwargs.items() if name in self._engine.adapter.host_arguments]
        return self._vision("the vision side as a whole", original, args, kwargs, host)

    def _encode_in_tower(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The vision tower's forward, where the method around it cannot be recorded."""
        return self._vision("the vision tower", original, args, kwargs, [])

    def _vision(
        self,
        what: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        host: Sequence[Any],
    ) -> Any:
        """Runs a part of the vision side.

        Args:
            what: Its name.
            original: It.
            args: What it is called with.
            kwargs: The same by name.
            host: What of it is read on the host.
        """
        local = self._engine.local
        given = [*args, *kwargs.values()]
        fixed_for = {id(value) for value in host}
        inputs = [value for value in given if isinstance(value, torch.Tensor) and id(value) not in fixed_for]
        record = local.open
        if record is None or not inputs or self._recordings.is_busy or is_recording() or torch.is_grad_enabled():
            return original(*args, **kwargs)
        if inputs[0].is_cuda:
            self._recordings.side.remember(local.prompt)
        try:
            self._check_devices(inputs)
            constants = tuple(str(value.tolist()) for value in host if isinstance(value, torch.Tensor))
            key = (what, len(args), *kwargs, *map(_signature, given), constants, _weights(self._engine.adapter.base))
            fixed, recorded = self._recordings.get(key, lambda: self._record_vision(original, args, kwargs, inputs))
        except _Refused as reason:
            self._tell(what, reason)
            return original(*args, **kwargs)
        put(inputs, fixed, [False] * len(inputs))
        output, seen = recorded.replay()
        record.take_over(seen)
        tensors = tensors_in(output)
        return replaced_in(output, dict(zip(map(id, tensors), copies(tensors), strict=True)))

    def _record_vision(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], Recorded[tuple[Any, VisionRecord]]]:
        self._check_spread()
        local = self._engine.local
        record = local.open
        assert record is not None
        fixed = [fixed_like(tensor, tensor.shape) for tensor in inputs]
        put(inputs, fixed, [False] * len(inputs))
        places = dict(zip(map(id, inputs), fixed, strict=True))
        here = [places.get(id(value), value) for value in args]
        named = {name: places.get(id(value), value) for name, value in kwargs.items()}

        def work() -> tuple[Any, VisionRecord]:
            local.open = VisionRecord(record.adapter, record.kind, {})
            self._recordings.is_busy = True
            try:
                return original(*here, **named), local.open
            finally:
                self._recordings.is_busy = False

        try:
            return fixed, Recorded(work, self._recordings.pool)
        finally:
            local.open = record

    def _decode_or_prefill(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The decoder's forward."""
        run = self._engine.local.run
        self._recordings.side.forget()
        if run is None or args or is_recording():
            return original(*args, **kwargs)
        is_step = bool(run.seen) and run.length == 1
        if is_step and not is_static(cache_in(kwargs), 0):
            return original(**kwargs)  # a cache that grows has a new shape at each step; nobody expects a graph here
        try:
            self._check(run, kwargs)
            return self._step(original, run, kwargs) if is_step else self._prefill(original, run, kwargs)
        except _Refused as reason:
            self._tell("decoding" if is_step else "a prefill", reason)
            self._engine.local.run = run
            return original(**kwargs)

    def _check(self, run: Run, kwargs: dict[str, Any]) -> None:
        """Refuses what a recording cannot do.

        Raises:
            _Refused: With the reason.
        """
        self._check_devices(value for value in run.given.arguments.values() if isinstance(value, torch.Tensor))
        if torch.is_grad_enabled():
            raise _Refused("gradients are enabled; call the model under torch.inference_mode()")
        if self._engine.adapter.decoder.training:
            raise _Refused("the model is in training mode; call model.eval()")
        for name in _SEEN_THROUGH:
            if kwargs.get(name):
                raise _Refused(f"{name} is asked for")
        if kwargs.get("return_dict") is False:
            raise _Refused("return_dict=False is asked for")
        for name, value in run.given.arguments.items():
            if isinstance(value, dict | list | tuple) and any(isinstance(part, torch.Tensor) for part in _parts(value)):
                raise _Refused(f"the decoder is given {name} as a {type(value).__name__} of tensors")
        mask = run.given.arguments.get("attention_mask")
        if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() in (2, 4)):
            raise _Refused(f"the attention mask is a {type(mask).__name__}")

    @staticmethod
    def _check_devices(tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if not tensor.is_cuda:
                raise _Refused(f"graphs need a CUDA device, and an input is on {tensor.device}")
        if torch.is_autocast_enabled("cuda"):
            raise _Refused("autocast is on; load the model in the number type that it is to run in")

    def _check_spread(self) -> None:
        devices = {parameter.device for parameter in self._engine.adapter.base.parameters()}
        if len(devices) > 1:
            raise _Refused(f"the model is spread over {len(devices)} devices")

    def _prefill(self, original: Callable[..., Any], run: Run, kwargs: dict[str, Any]) -> Any:
        if run.seen:
            raise _Refused("the cache already holds tokens, as in a later turn of a conversation")
        if self._engine.budget.adaptive:
            raise _Refused("with an adaptive budget the shapes depend on the picture")
        name = next((name for name in CACHE_NAMES if name in kwargs), None)
        cache = None if name is None else kwargs[name]
        inputs = self._complete(run, cache)
        pixels = Signal.PIXELS in self._engine.signals
        leaves = inputs.leaves(pixels=pixels)
        self._check_devices(leaf.tensor for leaf in leaves)
        fill = self._fill(inputs, run.length)
        key = (
            "prefill",
            fill + run.length,
            tuple(_lifted(leaf, fill) for leaf in leaves),
            tuple(leaf.tensor.dtype for leaf in leaves),
            tuple((argument, _kind(value)) for argument, value in inputs.arguments.items()),
            (*run.rows, *run.layouts, *(tuple(entries) for entries in run.images.entries)),
            tuple((layer, tuple(steps)) for layer, steps in run.plan.items()),
            tuple(record.host_values for record in run.images.records),
            (name, type(cache), inputs.mask is None, inputs.mask is inputs.arguments.get("attention_mask")),
            _weights(self._engine.adapter.decoder),
        )
        fixed, recorded = self._recordings.get(
            key, lambda: self._record_prefill(original, run, inputs, leaves, fill, name, cache)
        )
        put([leaf.tensor for leaf in leaves], fixed, [len(leaf.sequence) == 2 for leaf in leaves])
        done: _Prefill = recorded.replay()
        output, filled, outcome = self._hand_out(done, run.length, fill, cache)
        run.adopt(outcome, filled)
        self._engine.local.run = run
        return output

    def _complete(self, run: Run, cache: Any) -> PassInputs:
        """The inputs with everything in them that is worked out on the host, or from slots of the cache."""
        given = run.given
        if run.given.ids is not None:
            given = replace(given, ids=None, question=run.question)
        arguments = dict(given.arguments)
        mask = arguments.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            # With a static cache it also covers slots that are empty still.
            short = mask[..., : run.length]
            whole = given.mask is mask
            arguments["attention_mask"] = short
            given = replace(given, mask=short if whole else given.mask)
        given = replace(given, arguments=arguments)
        if not self._fill(given, run.length):
            return given
        if given.mask is None or arguments.get("attention_mask") is None:
            here = torch.ones(run.batch, run.length, dtype=torch.bool, device=given.embeddings.device)
            arguments["attention_mask"] = here if given.mask is None else given.mask
            given = replace(given, mask=here if given.mask is None else given.mask)
        if arguments.get("position_ids") is None:
            arguments["position_ids"] = torch.arange(run.length, device=given.embeddings.device).unsqueeze(0)
        return given

    def _fill(self, inputs: PassInputs, length: int) -> int:
        """How many tokens fill a prompt up."""
        known = ("inputs_embeds", "attention_mask", "position_ids")
        others = any(
            isinstance(value, torch.Tensor) and length in value.shape
            for name, value in inputs.arguments.items()
            if name not in known
        )
        return 0 if others or self._only_whole else -length % self._settings.bucket

    def _record_prefill(
        self,
        original: Callable[..., Any],
        run: Run,
        inputs: PassInputs,
        leaves: list[Leaf],
        fill: int,
        name: str | None,
        cache: Any,
    ) -> tuple[list[torch.Tensor], Recorded[_Prefill]]:
        engine = self._engine
        self._check_spread()
        static = cache is not None and SlotPool.can_fill(cache)
        if not (cache is None or static or isinstance(cache, DynamicCache)):
            raise _Refused(f"the cache is a {type(cache).__name__}, neither dynamic nor all of plain static layers")
        fixed = [fixed_like(leaf.tensor, _lifted(leaf, fill)) for leaf in leaves]
        put([leaf.tensor for leaf in leaves], fixed, [len(leaf.sequence) == 2 for leaf in leaves])
        empty = None if static else copy.deepcopy(cache)

        def work() -> _Prefill:
            # Made anew, because records keep what they have worked out.
            given = inputs.with_tensors(fixed, pixels=Signal.PIXELS in engine.signals)
            arguments = dict(given.arguments)
            filled = DynamicCache() if static else copy.deepcopy(empty)
            if name is not None:
                arguments[name] = filled
            mine = Run(engine, replace(given, cache=filled), run.plan)
            if mine.is_active:
                mine.given = replace(mine.given, injected=engine.adapter.injections(arguments))
            engine.local.run = mine
            output = original(**arguments)
            return _Prefill(output, cache_in(output) if filled is None else filled, mine.outcome)

        try:
            recorded = Recorded(work, self._recordings.pool)
        finally:
            engine.local.run = run
        layers = getattr(recorded.result.cache, "layers", ())
        if fill and any(type(layer) is not DynamicLayer for layer in layers):
            # Windows and recurrent states hold more than one slot for each token that could be cut off.
            self._only_whole = True
            raise _Refused("its cache cannot be filled up; from now on each length of prompt is recorded by itself")
        return fixed, recorded

    def _hand_out(self, done: _Prefill, length: int, fill: int, cache: Any) -> tuple[Any, Any, Outcome]:
        """Copies of what a replay made: the output, the filled cache, and what the pass leaves behind."""
        layers = [vars(layer) for layer in getattr(done.cache, "layers", ())]
        static = cache is not None and is_static(cache, 0)
        taken = tensors_in(done.output)
        kept = [] if static else [value for layer in layers for value in tensors_in(list(layer.values()))]
        marks = [
            tensor
            for cached in done.outcome.cached.values()
            for tensor in (cached.columns, cached.shift, cached.bias)
            if tensor is not None
        ]
        for trace in done.outcome.traces:
            marks += [trace.origin] if trace.bias is None else [trace.origin, trace.bias]
        every = [*taken, *kept, *marks]
        new: dict[int, Any] = dict(zip(map(id, every), copies(every), strict=True))
        outcome = _unfilled(done.outcome, new, fill)
        filled = cache
        if done.cache is not None:
            if static:
                for number, left in enumerate(outcome.lengths):
                    shorten_static_layers(cache, number, length - left)
                self._recordings.slots.fill(cache, [(layer["keys"], layer["values"]) for layer in layers], fill)
            else:
                filled = copy.copy(done.cache) if cache is None else cache
                filled.layers = [_copied(layer, new, fill) for layer in done.cache.layers]
            new[id(done.cache)] = filled
        if fill:
            new.update({id(tensor): new[id(tensor)][:, fill:] for tensor in taken if tensor.dim() == 3})
        return replaced_in(done.output, new), filled, outcome

    def _step(self, original: Callable[..., Any], run: Run, kwargs: dict[str, Any]) -> Any:
        name = next(name for name in CACHE_NAMES if kwargs.get(name) is not None)
        slots = self._recordings.slots.of(kwargs[name])
        if slots is None:
            raise _Refused("the static cache was not filled by a recorded prefill")
        inputs = slots.bind(run)
        if isinstance(inputs, str):
            raise _Refused(inputs)
        arguments = run.given.arguments
        tensors = [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]
        extra = [key for key in tensors if key not in inputs.moving]
        if set(extra) - {"attention_mask"}:
            raise _Refused(f"the decoder is given {', '.join(extra)} for the new token")
        key = (
            "step",
            id(slots),
            inputs.structure,
            tuple((argument, _signature(value)) for argument, value in arguments.items() if argument not in extra),
            _weights(self._engine.adapter.decoder),
        )
        recorded = self._recordings.get(key, lambda: self._record_step(original, run, slots, name, extra))
        put([arguments[key] for key in inputs.moving], inputs.moving.values(), [False] * len(inputs.moving))
        output = recorded.replay()
        made = tensors_in(output)
        new: dict[int, Any] = dict(zip(map(id, made), copies(made), strict=True))
        run.adopt(Outcome(), kwargs[name])
        self._engine.local.run = run
        return replaced_in(output, {**new, id(slots.cache): kwargs[name]})

    def _record_step(
        self, original: Callable[..., Any], run: Run, slots: DecodeSlots, name: str, extra: list[str]
    ) -> Recorded[Any]:
        engine, inputs = self._engine, slots.inputs
        assert inputs is not None
        arguments = {key: value for key, value in run.given.arguments.items() if key not in extra} | inputs.moving
        put([run.given.arguments[key] for key in inputs.moving], inputs.moving.values(), [False] * len(inputs.moving))
        arguments |= {"attention_mask": inputs.state.padding} if "attention_mask" in run.given.arguments else {}
        given = PassInputs(arguments=dict(arguments), cache=slots.cache, state=inputs.state)

        def work() -> Any:
            mine = Run(engine, given, {})
            engine.local.run = mine if mine.is_active else None
            return original(**arguments, **{name: slots.cache})

        try:
            with slots.undisturbed():
                # Once only: the last step before the cache is full has no slot for a second one.
                return Recorded(work, self._recordings.pool, warmup=1)
        finally:
            engine.local.run = run


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def _lifted(leaf: Leaf, fill: int) -> tuple[int, ...]:
    """The shape of an input in a prompt that is filled up."""
    shape = list(leaf.tensor.shape)
    for dimension in leaf.sequence:
        shape[dimension] += fill
    return tuple(shape)


def _kind(value: Any) -> Hashable:
    """What a recording takes for granted of an argument beside the shapes of tensors."""
    return torch.Tensor if isinstance(value, torch.Tensor) else _signature(value)


def _signature(value: Any) -> Hashable:
    """What a recording takes for granted of an argument."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    return value if isinstance(value, Hashable) else repr(value)


def _weights(module: nn.Module) -> Hashable:
    """Where a module's weights lie: recordings read them there."""
    first = next(module.parameters())
    return first.data_ptr(), first.dtype, first.device


def _copied(layer: Any, new: dict[int, Any], fill: int) -> Any:
    """A layer of a cache with its tensors replaced, and without the slots that filled the prompt up."""
    own = copy.copy(layer)
    own.__dict__.update({name: replaced_in(value, new) for name, value in vars(layer).items()})
    if fill:
        own.keys, own.values = own.keys[:, :, fill:], own.values[:, :, fill:]
    return own


def _unfilled(outcome: Outcome, new: dict[int, Any], fill: int) -> Outcome:
    """What a pass leaves behind, without the tokens that filled its prompt up."""

    def own(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else new[id(tensor)]

    cached = {}
    for layer, tokens in outcome.cached.items():
        columns, bias = own(tokens.columns), own(tokens.bias)
        if fill:
            columns = torch.where(columns < 0, -1, columns - fill)[:, fill:]
            bias = None if bias is None else bias[:, fill:]
        cached[layer] = replace(tokens, columns=columns, end=tokens.end - fill, shift=own(tokens.shift), bias=bias)
    traces = [replace(trace, origin=own(trace.origin), bias=own(trace.bias)) for trace in outcome.traces]
    return Outcome(cached, traces, tuple(length - fill for length in outcome.lengths))
