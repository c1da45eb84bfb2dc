"""A prefill replayed from a CUDA graph, with the stages and selections in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from vtprune.engine.cache_names import CACHE_NAMES, cache_in
from vtprune.engine.capture import Recorded, copies, fixed_like, put, replaced_in, tensors_in
from vtprune.engine.decode_slots import SlotPool
from vtprune.engine.pass_inputs import Leaf, PassInputs
from vtprune.engine.recordings import Graph, Recorder, Refused, check_devices, signature, weights_of
from vtprune.engine.run import Outcome, Run
from vtprune.engine.static_cache import is_static, shorten_static_layers
from vtprune.pruner import Signal

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine


@dataclass(frozen=True)
class _Prefill:
    """What a recorded prefill returns."""

    output: Any
    cache: Any
    outcome: Outcome


class PrefillRecorder(Recorder):
    """Records prefills."""

    def __init__(self, engine: Engine, settings: Graph) -> None:
        super().__init__(engine, settings)
        self._only_whole = False

    def run(self, original: Callable[..., Any], run: Run, kwargs: dict[str, Any]) -> Any:
        """The decoder's forward for a prompt.

        Raises:
            Refused: It is not recorded.
        """
        if run.seen:
            raise Refused("the cache already holds tokens, as in a later turn of a conversation")
        if self._engine.budget.adaptive:
            raise Refused("with an adaptive budget the shapes depend on the picture")
        name = next((name for name in CACHE_NAMES if name in kwargs), None)
        cache = None if name is None else kwargs[name]
        inputs = self._complete(run, cache)
        pixels = Signal.PIXELS in self._engine.signals
        leaves = inputs.leaves(pixels=pixels)
        check_devices(leaf.tensor for leaf in leaves)
        fill = self._fill(inputs, run.length)
        key = (
            fill + run.length,
            tuple(_lifted(leaf, fill) for leaf in leaves),
            tuple(leaf.tensor.dtype for leaf in leaves),
            tuple((argument, _kind(value)) for argument, value in inputs.arguments.items()),
            (*run.rows, *run.layouts, *(tuple(entries) for entries in run.images.entries)),
            tuple((layer, tuple(steps)) for layer, steps in run.plan.items()),
            tuple(record.host_values for record in run.images.records),
            (name, type(cache), inputs.mask is None, inputs.mask is inputs.arguments.get("attention_mask")),
            weights_of(self._engine.adapter.decoder),
        )
        fixed, recorded = self.recordings.get(
            "prefill", key, lambda: self._record(original, run, inputs, leaves, fill, name, cache)
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

    def _record(
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
            raise Refused(f"the cache is a {type(cache).__name__}, neither dynamic nor all of plain static layers")
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
            recorded = self.recordings.record(work)
        finally:
            engine.local.run = run
        layers = getattr(recorded.result.cache, "layers", ())
        if fill and any(type(layer) is not DynamicLayer for layer in layers):
            # Windows and recurrent states hold more than one slot for each token that could be cut off.
            self._only_whole = True
            raise Refused("its cache cannot be filled up; from now on each length of prompt is recorded by itself")
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
                self.recordings.slots.fill(cache, [(layer["keys"], layer["values"]) for layer in layers], fill)
            else:
                filled = copy.copy(done.cache) if cache is None else cache
                filled.layers = [_copied(layer, new, fill) for layer in done.cache.layers]
            new[id(done.cache)] = filled
        if fill:
            new.update({id(tensor): new[id(tensor)][:, fill:] for tensor in taken if tensor.dim() == 3})
        return replaced_in(done.output, new), filled, outcome


def _lifted(leaf: Leaf, fill: int) -> tuple[int, ...]:
    """The shape of an input in a prompt that is filled up."""
    shape = list(leaf.tensor.shape)
    for dimension in leaf.sequence:
        shape[dimension] += fill
    return tuple(shape)


def _kind(value: Any) -> Hashable:
    """What a recording takes for granted of an argument beside the shapes of tensors."""
    return torch.Tensor if isinstance(value, torch.Tensor) else signature(value)


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
