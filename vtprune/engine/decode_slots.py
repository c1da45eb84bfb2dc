"""Memory of static caches that outlives them, so that a recorded decoding step serves one generation after another."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import StaticCache, StaticLayer

from vtprune.engine.cache_state import CachedTokens, CacheState
from vtprune.engine.capture import fixed_like

if TYPE_CHECKING:
    from vtprune.engine.run import Run

_MOVING = ("inputs_embeds", "position_ids")
_SPARE = 2
"""Sets of slots without an owner that are kept."""


@dataclass(frozen=True)
class StepInputs:
    """Where a recorded step reads from.

    Args:
        structure: What the recording takes for granted.
        moving: Arguments of the decoder that change with each step.
        state: What is known of the cache, as if all its slots were in use: causality hides those that are not.
    """

    structure: Hashable
    moving: dict[str, torch.Tensor]
    state: CacheState


class DecodeSlots:
    """The slots of one static cache.

    Args:
        cache: A static cache to make them for.
        states: Keys and values of each layer, of which sizes and number types are taken.
    """

    def __init__(self, cache: Any, states: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.layers: list[StaticLayer] = []
        with torch.inference_mode(False):
            self._counts = torch.zeros(len(states), dtype=torch.long, device=states[0][0].device)
            for number, (own, (keys, values)) in enumerate(zip(cache.layers, states, strict=True)):
                layer = StaticLayer(own.max_cache_len)
                layer.lazy_initialization(keys, values)
                layer.cumulative_length = self._counts[number]
                self.layers.append(layer)
        # A plain one: how full each layer is must be asked of the device, not of what the engine knows.
        self.cache = StaticCache.__new__(StaticCache)
        self.cache.__dict__.update(
            {name: value for name, value in vars(cache).items() if not name.startswith("_vtprune")}
        )
        self.cache.layers = list(self.layers)
        self.owner: weakref.ref[Any] | None = None
        self.inputs: StepInputs | None = None
        self._known: dict[Hashable, StepInputs] = {}
        self._bound: weakref.ref[CacheState] | None = None

    def fill(self, cache: Any, states: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Gives the slots to a cache, with the keys and values of a prompt in them."""
        self.owner, self._bound = weakref.ref(cache), None
        lengths = [keys.shape[2] for keys, _ in states]
        pairs = [
            (getattr(layer, name), state)
            for layer, both in zip(self.layers, states, strict=True)
            for name, state in zip(("keys", "values"), both, strict=True)
        ]
        torch._foreach_copy_([slots[:, :, : state.shape[2]] for slots, state in pairs], [state for _, state in pairs])
        # What an earlier generation left behind is hidden by masks, but not if it is no number.
        if behind := [rest for slots, state in pairs if (rest := slots[:, :, state.shape[2] :]).numel()]:
            torch._foreach_zero_(behind)
        # From pinned memory, which nobody waits for.
        counts = torch.tensor(lengths, pin_memory=self._counts.is_cuda)
        self._counts.copy_(counts, non_blocking=True)
        for own, layer in zip(cache.layers, self.layers, strict=True):
            own.__dict__.update(vars(layer))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within, a step may be tried; afterwards it has not happened."""
        before = self._counts.clone()
        try:
            yield
        finally:
            self._counts.copy_(before)

    def bind(self, run: Run) -> StepInputs | str:
        """Makes the slots' recording read what is known of a cache; or the reason why it cannot."""
        state = run.given.state
        assert state is not None
        moving = {name: run.given.arguments[name] for name in _MOVING}
        ends = {
            tokens.end + self.layers[layer].max_cache_len - tokens.columns.shape[1]
            for layer, tokens in state.boundaries.items()
        }
        if 0 not in state.boundaries:
            ends.add(self.layers[0].max_cache_len)
        if len(ends) > 1:
            return "the layers of the static cache are not as long as what they will hold"
        (capacity,) = ends
        if run.seen >= capacity:
            raise ValueError(
                f"the static cache is full: it was made for {capacity} tokens; make it larger (max_cache_len, or "
                "max_new_tokens of generate)"
            )
        structure = (
            capacity,
            tuple((name, tensor.shape, tensor.dtype) for name, tensor in moving.items()),
            state.padding is None,
            tuple(
                (layer, tokens.fillers, tokens.shift is None, tokens.bias is None)
                for layer, tokens in sorted(state.boundaries.items())
            ),
        )
        known = self.inputs is not None and self.inputs.structure == structure
        if not known or self._bound is None or self._bound() is not state:
            if structure not in self._known:
                self._known[structure] = self._inputs(structure, moving, state, capacity)
            self.inputs, self._bound = self._known[structure], weakref.ref(state)
            self._copy(state, self.inputs.state, capacity)
        assert self.inputs is not None
        return self.inputs

    def _inputs(
        self, structure: Hashable, moving: dict[str, torch.Tensor], state: CacheState, capacity: int
    ) -> StepInputs:
        batch = next(iter(moving.values())).shape[0]

        def like(tensor: torch.Tensor | None, shape: Sequence[int]) -> Any:
            return None if tensor is None else fixed_like(tensor, shape)

        boundaries = {}
        for layer, tokens in state.boundaries.items():
            whole = (tokens.columns.shape[0], self.layers[layer].max_cache_len)
            boundaries[layer] = replace(
                tokens,
                columns=like(tokens.columns, whole),
                end=capacity,
                shift=None if tokens.shift is None else like(tokens.shift, tokens.shift.shape),
                bias=like(tokens.bias, whole),
            )
        padding = like(state.padding, (batch, capacity))
        fixed = {name: like(tensor, tensor.shape) for name, tensor in moving.items()}
        return StepInputs(structure, fixed, CacheState(boundaries, capacity - 1, padding))

    @staticmethod
    def _copy(state: CacheState, fixed: CacheState, capacity: int) -> None:
        for layer, tokens in state.boundaries.items():
            place: CachedTokens = fixed.boundaries[layer]
            place.columns.copy_(tokens.upto(capacity))
            if tokens.shift is not None and place.shift is not None:
                place.shift.copy_(tokens.shift)
            if tokens.bias is not None and place.bias is not None:
                place.bias.zero_()[:, : tokens.bias.shape[1]].copy_(tokens.bias)
        if state.padding is not None and fixed.padding is not None:
            fixed.padding.fill_(True)[:, : state.padding.shape[1]].copy_(state.padding)


class SlotPool:
    """The slots of one thread."""

    def __init__(self) -> None:
        self._found: dict[Hashable, list[DecodeSlots]] = {}
        self._owned: weakref.WeakKeyDictionary[Any, DecodeSlots] = weakref.WeakKeyDictionary()

    @staticmethod
    def can_fill(cache: Any) -> bool:
        """Whether all layers of a cache are static ones without a window."""
        layers = getattr(cache, "layers", ())
        return bool(layers) and all(type(layer) is StaticLayer for layer in layers)

    def fill(self, cache: Any, states: Sequence[tuple[torch.Tensor, torch.Tensor]], skip: int) -> None:
        """Fills an empty static cache with a prompt.

        Args:
            cache: The cache.
            states: Keys and values of each layer, `(batch, heads, length, dim)`.
            skip: Slots at their start to leave out.
        """
        states = [(keys[:, :, skip:], values[:, :, skip:]) for keys, values in states]
        keys, values = states[0]
        lengths = tuple(layer.max_cache_len for layer in cache.layers)
        kind = (lengths, len(keys), keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, keys.device)
        every = self._found.setdefault(kind, [])
        free = [slots for slots in every if slots.owner is None or slots.owner() in (None, cache)]
        slots = free[0] if free else DecodeSlots(cache, states)
        if not free:
            every.append(slots)
        for spare in free[_SPARE:]:
            every.remove(spare)
        slots.fill(cache, states)
        self._owned[cache] = slots

    def of(self, cache: Any) -> DecodeSlots | None:
        """The slots that a cache has now; `None` where it has memory of its own."""
        slots = self._owned.get(cache)
        return slots if slots is not None and slots.owner is not None and slots.owner() is cache else None
