"""One forward pass of a wrapped model: which tokens are present at which layer, and the tensors that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vtprune.engine.cache_state import CachedTokens, CacheState, attach_state
from vtprune.engine.selection import prune_images
from vtprune.engine.sequence import Tokens, start_tokens
from vtprune.engine.stage_context import last_row_attention
from vtprune.engine.taps import AttentionStates
from vtprune.engine.vision import VisionRecord
from vtprune.layout import ImageLayout
from vtprune.pruner import Signal
from vtprune.reporting import Report, StageTrace

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine


@dataclass(frozen=True)
class View:
    """What the layers from a boundary on get instead of the arguments that the decoder hands to all layers.

    Args:
        attention_mask: Mask over the present tokens.
        position_embeddings: Rotary tables of the present tokens.
        position_ids: Positions of the present tokens, or a gapless stand-in where the tables carry the true ones.
        replaced: The decoder's own arguments, kept so that their identity stays a valid key.
    """

    attention_mask: Any
    position_embeddings: Any
    position_ids: torch.Tensor | None
    replaced: tuple[Any, ...]


class Run:
    """A forward pass of the decoder, from its entry to its exit.

    Args:
        engine: The engine of the wrapped model.
        embeddings: What enters the decoder, `(batch, length, dim)`.
        cache: The cache it was given, or `None`.
        state: What is known about the tokens in that cache.
        mask: The attention mask it was given, in any form.
        visual: Placeholder positions, `(batch, length)`, when this pass brings images.
        record: The vision run whose images they are.
        rows: Row of each image.
        sources: For each image its number in the record.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        embeddings: torch.Tensor,
        cache: Any,
        state: CacheState | None,
        mask: Any,
        visual: torch.Tensor | None,
        record: VisionRecord | None,
        rows: Sequence[int],
        sources: Sequence[int],
    ) -> None:
        self.engine = engine
        self.embeddings = embeddings if Signal.TEXT_EMBEDDINGS in engine.pruner.signals else None
        self.bytes_per_value = embeddings.element_size()
        self.record = record
        self.sources = list(sources)
        self.rows = list(rows)
        self.batch, self.length = embeddings.shape[:2]
        self.layouts: list[ImageLayout] = [] if record is None else [record.layouts[source] for source in sources]
        if visual is None:
            visual = torch.zeros(self.batch, self.length, dtype=torch.bool, device=embeddings.device)
        self.visual = visual
        self.with_gradient = torch.is_grad_enabled()
        self._cache = cache
        self._state = state or CacheState()
        self._allowed = _allowed_columns(mask, self._state, self._seen, self.length)
        # Padding among the tokens of this pass; the tokens cached before are not part of it.
        self.padding = None if self._allowed is None else self._allowed[:, -self.length :]

        self._plan = self._stage_counts()
        self._boundaries = sorted({*self._plan, *self._state.boundaries})
        self._start: Tokens | None = start_tokens(self.visual, self.rows, self.counts) if self._plan else None
        self._before: dict[int, Tokens] = {}
        self._entered: dict[int, Tokens | None] = {}
        self._views: dict[tuple[int, str, int, int], View] = {}
        self._cached: dict[int, CachedTokens] = {}
        self._states: dict[int, AttentionStates] = {}
        self._traces: list[StageTrace] = []
        self._current = self._start

    @property
    def counts(self) -> list[int]:
        """Visual tokens of each image before pruning."""
        return [layout.tokens for layout in self.layouts]

    @property
    def _seen(self) -> int:
        return self._state.seen

    @property
    def left(self) -> Tokens | None:
        """The tokens present now; `None` when this pass removes none."""
        return self._current

    @property
    def is_active(self) -> bool:
        """Whether any layer gets other arguments than the decoder hands out."""
        return bool(self._boundaries)

    @property
    def taps(self) -> set[int]:
        """Decoder layers whose query and key states a stage of this pass needs."""
        return {layer - 1 for layer in self._plan} if self.engine.needs_decoder_states else set()

    def keep_states(self, layer: int, states: AttentionStates) -> None:
        """Takes what the attention of `layer` was given, if a stage needs it."""
        if layer in self.taps and layer not in self._states:
            self._states[layer] = states

    def states_before(self, layer: int) -> AttentionStates:
        """Query and key states of decoder layer `layer - 1`."""
        if layer - 1 not in self._states:
            raise RuntimeError(
                f"the attention of decoder layer {layer - 1} was not seen; was the attention implementation changed "
                "after wrapping? Unwrap, change it, wrap again"
            )
        return self._states[layer - 1]

    def cached_before(self, layer: int) -> int:
        """Slots that `layer` had cached before this pass."""
        cached = self._state.at(layer)
        return self._seen if cached is None else cached.columns.shape[1] + self._seen - cached.end

    def last_token_attention(self, layer: int, tokens: Tokens) -> torch.Tensor:
        """Attention of each row's last token in decoder layer `layer - 1`, `(rows, heads, keys)`."""
        states = self.states_before(layer)
        present = self._present(tokens)
        if present is None:
            last = torch.full((self.batch,), tokens.length - 1, device=states.queries.device)
        else:
            last = (present * torch.arange(tokens.length, device=present.device)).argmax(dim=1)
        first = self.cached_before(layer - 1)
        behind = torch.arange(states.keys.shape[2], device=last.device) <= (last + first).unsqueeze(1)
        keys = self._keys(self._cached_after(layer - 1, tokens))
        if keys is not None:
            spare = behind.shape[1] - keys.shape[1]
            behind = behind & torch.nn.functional.pad(keys, (0, spare), value=False)
        return last_row_attention(states, last, behind)

    def before_layer(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Prunes if a stage lies before this layer, and swaps the arguments that have a sequence dimension.

        Called a second time for a layer when gradient checkpointing recomputes it.
        """
        if layer in self._boundaries:
            hidden = self._enter(layer, hidden, kwargs)
        view = self._view_at(layer, hidden, kwargs)
        if view is not None:
            kwargs["attention_mask"] = view.attention_mask
            if "position_embeddings" in kwargs:
                kwargs["position_embeddings"] = view.position_embeddings
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = view.position_ids
        return hidden

    def finish(self) -> None:
        """Writes down what the cache now holds, and the report."""
        if self._cache is not None and (self._boundaries or self._state.seen):
            state = attach_state(self._cache)
            state.boundaries = {**self._state.boundaries, **self._cached}
            state.seen = self._seen + self.length
            if self.length > 1:
                state.padding = self._allowed
        if self.layouts:
            self.engine.last_report = self._report()

    def _stage_counts(self) -> dict[int, list[int]]:
        """For each stage that removes something, the tokens of each image after it."""
        if not self.layouts:
            return {}
        schedules: list[tuple[int, ...]] = []
        text = self._text_lengths()
        for row, length in zip(range(self.batch), text, strict=True):
            images = [layout for layout, owner in zip(self.layouts, self.rows, strict=True) if owner == row]
            schedules += self.engine.schedules(images, length)
        plan: dict[int, list[int]] = {}
        current = self.counts
        for stage, layer in enumerate(self.engine.pruner.layers):
            after = [schedule[stage] for schedule in schedules]
            if after != current:
                plan[layer] = after
            current = after
        return plan

    def _text_lengths(self) -> list[int]:
        """Text tokens of each row; read from the device only where a budget depends on them."""
        if self.engine.budget.flops is None:
            return [0] * self.batch
        text = ~self.visual if self.padding is None else ~self.visual & self.padding
        return [int(count) + self._seen for count in text.sum(1).tolist()]

    def _enter(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        again = layer in self._entered
        tokens = self._before.get(layer, self._current)
        if tokens is not None:
            tokens = tokens.to(hidden.device)
            self._before[layer] = tokens
        if layer in self._plan:
            assert tokens is not None
            gather, hidden = prune_images(self, layer, tokens, hidden, self._plan[layer])
            tokens = gather.after
            if not again:
                trace = StageTrace(layer, gather.before.counts, tokens.counts, tokens.origin)
                self._traces.append(trace)
        if not again:
            self._current = tokens
            self._cache = self._cache if self._cache is not None else _cache_of(kwargs)
            self._cached[layer] = self._cached_after(layer, tokens)
            self._entered[layer] = tokens
        return hidden

    def _view_at(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> View | None:
        """The arguments for a layer; layers of one kind that got the same arguments share theirs."""
        below = [boundary for boundary in self._entered if boundary <= layer]
        if not below:
            return None
        boundary = max(below)
        replaced = (kwargs.get("attention_mask"), kwargs.get("position_embeddings"), kwargs.get("position_ids"))
        key = boundary, self.engine.adapter.layer_kind(layer), id(replaced[0]), id(replaced[1])
        if key not in self._views:
            tokens = self._entered[boundary]
            self._views[key] = View(
                attention_mask=self._mask(layer, tokens, hidden, kwargs, self._cached[boundary]),
                position_embeddings=self._position_embeddings(tokens, hidden, kwargs, self._state.at(boundary)),
                position_ids=self._position_ids(tokens, hidden, kwargs),
                replaced=replaced,
            )
        return self._views[key]

    def _cached_after(self, layer: int, tokens: Tokens | None) -> CachedTokens:
        """What the layers from here on will have cached after this pass."""
        past = self._state.at(layer)
        if tokens is None:
            # Without images of its own this pass only has the boundaries that the cache came with.
            assert past is not None
            return past
        columns = tokens.columns + self._seen
        if tokens.valid is not None:
            columns = columns.masked_fill(~tokens.valid, -1)
        if self._seen:
            before = torch.arange(self._seen, device=columns.device).expand(self.batch, -1)
            columns = torch.cat([before if past is None else past.upto(self._seen).to(columns.device), columns], dim=1)
        shift = None if past is None else past.shift
        if self.engine.positions == "pack" and tokens.removed is not None:
            total = tokens.removed[:, -1:]
            shift = total if shift is None else shift + total
        fillers = tokens.valid is not None or (past is not None and past.fillers)
        return CachedTokens(columns, self._seen + self.length, fillers, shift)

    def _keys(self, cached: CachedTokens) -> torch.Tensor | None:
        """Which cached and new slots may be attended to, `(batch, slots)`; `None` for all."""
        return cached.keys(self._allowed, self._seen + self.length)

    def _present(self, tokens: Tokens) -> torch.Tensor | None:
        """Slots of this pass that hold a real token, `(batch, length)`; `None` when all do."""
        if self.padding is None:
            return tokens.valid
        here = tokens.last_dim(self.padding.to(tokens.columns.device))
        return here if tokens.valid is None else here & tokens.valid

    def _mask(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], cached: CachedTokens
    ) -> Any:
        ready = kwargs.get("attention_mask")
        if not self._seen and tokens is not None:
            if ready is None and tokens.valid is None:
                return None
            if isinstance(ready, torch.Tensor) and ready.dim() == 4:
                cache = _cache_of(kwargs)
                keys = tokens.length if cache is None else cache.get_mask_sizes(tokens.length, layer)[0]
                return tokens.square_mask(ready, keys)
            if isinstance(ready, torch.Tensor) and ready.dim() == 2:
                return self._keys(cached)
        allowed = self._keys(cached)
        allowed = None if allowed is None else allowed.to(hidden.device)
        return self.engine.adapter.causal_mask(hidden, allowed, _cache_of(kwargs), layer)

    def _position_embeddings(
        self, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> Any:
        embeddings = kwargs.get("position_embeddings")
        shift = None if past is None else past.shift
        packed = tokens is not None and tokens.removed is not None and self.engine.positions == "pack"
        if shift is None and not packed:
            return embeddings if tokens is None else _gather_embeddings(embeddings, tokens)
        positions = kwargs["position_ids"]
        if positions.dim() != 2:
            raise ValueError(
                f"positions='pack' needs one position a token, this model has {tuple(positions.shape)}; "
                "use positions='keep'"
            )
        positions = positions.to(hidden.device)
        if tokens is not None:
            positions = tokens.last_dim(positions)
            if packed:
                assert tokens.removed is not None
                positions = positions - tokens.removed
        if shift is not None:
            positions = positions - shift.to(hidden.device)
        return self.engine.adapter.rotary(hidden, positions)

    def _position_ids(self, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor | None:
        positions: torch.Tensor | None = kwargs.get("position_ids")
        if positions is None or tokens is None:
            return positions
        if kwargs.get("position_embeddings") is None:
            return tokens.last_dim(positions)
        # The rotary tables carry the true positions. Gaps in these would be taken for borders of packed sequences.
        return torch.arange(self._seen, self._seen + tokens.length, device=hidden.device).expand(self.batch, -1)

    def _report(self) -> Report:
        lengths = [self.length] * len(self.engine.layers)
        for layer, tokens in self._entered.items():
            if tokens is not None:
                lengths[layer:] = [tokens.length] * (len(lengths) - layer)
        layouts = [
            [layout for layout, owner in zip(self.layouts, self.rows, strict=True) if owner == row]
            for row in range(self.batch)
        ]
        return Report(
            pruner=self.engine.pruner.name,
            config=self.engine.pruner.config(),
            budget=self.engine.budget,
            positions=self.engine.positions,
            layouts=layouts,
            traces=self._traces,
            columns=None if self._start is None else self._start.slots,
            prompt_length=self.length,
            lengths=lengths,
            batch=self.batch,
            shape=self.engine.shape,
            bytes_per_value=self.bytes_per_value,
        )


def _cache_of(kwargs: dict[str, Any]) -> Any:
    return kwargs.get("past_key_values")


def _gather_embeddings(embeddings: Any, tokens: Tokens) -> Any:
    """Gathers tensors `(..., length, dim)` in any nesting of tuples and dictionaries."""
    if isinstance(embeddings, torch.Tensor):
        return tokens.to(embeddings.device).last_but_one_dim(embeddings)
    if isinstance(embeddings, dict):
        return {name: _gather_embeddings(value, tokens) for name, value in embeddings.items()}
    if isinstance(embeddings, tuple | list):
        return type(embeddings)(_gather_embeddings(value, tokens) for value in embeddings)
    return embeddings


def _allowed_columns(mask: Any, state: CacheState, seen: int, length: int) -> torch.Tensor | None:
    """Which prompt columns, old and new, hold real tokens, `(batch, seen + length)`; `None` without padding.

    A ready four-dimensional mask (static caches) tells this in its last row for a first prefill; later it does not
    reach back over removed columns, and what the first prefill told still holds.
    """
    if isinstance(mask, dict):
        mask = next((part for part in mask.values() if part is not None), None)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] >= seen + length:
        return mask[:, : seen + length].bool()
    if isinstance(mask, torch.Tensor) and mask.dim() == 4 and not seen:
        last = mask[:, 0, -1, :length]
        return last if last.dtype == torch.bool else last == 0
    if state.padding is None:
        return None
    return torch.nn.functional.pad(state.padding, (0, seen + length - state.padding.shape[1]), value=True)
