"""One forward pass of a wrapped model: which tokens are present at which layer, and the tensors that go with them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from vtprune.engine.cache_names import cache_in
from vtprune.engine.cache_state import CachedTokens, CacheState, attach_state
from vtprune.engine.checks import DECODER_STATES, UNROTATED
from vtprune.engine.peek import Peek
from vtprune.engine.query_rows import attention_from
from vtprune.engine.selection import Step, prune_images
from vtprune.engine.sequence import Tokens, start_tokens
from vtprune.engine.taps import AttentionStates
from vtprune.engine.views import View, allowed_columns, gather_embeddings, weighed_mask
from vtprune.engine.vision import VisionRecord
from vtprune.layout import ImageLayout
from vtprune.pruner import Signal
from vtprune.reporting import Report, StageTrace

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine
    from vtprune.text_tower import TextEmbeddings


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
        ids: The prompt's token ids, `(batch, length)`, where the method reads the question.
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
        ids: torch.Tensor | None = None,
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
        self.peek = Peek()
        self._ids = ids
        self._cache = cache
        self._state = state or CacheState()
        self._allowed = allowed_columns(mask, self._state, self._seen, self.length)
        # Padding among the tokens of this pass; the tokens cached before are not part of it.
        self.padding = None if self._allowed is None else self._allowed[:, -self.length :]

        self._plan = self._steps()
        self._boundaries = sorted({*self._plan, *self._state.boundaries})
        self._start: Tokens | None = start_tokens(self.visual, self.rows, self.counts) if self._plan else None
        self._before: dict[int, Tokens] = {}
        self._entered: dict[int, Tokens | None] = {}
        self._views: dict[tuple[int, str, int, int], View] = {}
        self._cached: dict[int, CachedTokens] = {}
        self._states: dict[int, AttentionStates] = {}
        self._unrotated: dict[int, AttentionStates] = {}
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
        return {layer - 1 for layer in self._plan if layer in self.engine.stages_with(DECODER_STATES)}

    @cached_property
    def question(self) -> TextEmbeddings:
        """CLIP text embeddings of each row's question; reading it waits for the device once."""
        reader, tower = self.engine.question_reader, self.engine.text_tower
        if self._ids is None:
            raise ValueError(
                f"{self.engine.pruner.name} reads the question from the prompt's tokens: pass input_ids, not "
                "inputs_embeds alone"
            )
        assert reader is not None
        assert tower is not None
        return tower.encode(reader.read(self._ids, None if self.padding is None else self.padding))

    def visual_inputs(self, images: Sequence[int]) -> torch.Tensor:
        """What the decoder was given for all tokens of images of one layout, `(images, tokens, dim)`."""
        assert self.embeddings is not None
        assert self._start is not None
        slots = self._start.of_images(self._start.slots, images)
        return self.embeddings.flatten(0, 1)[slots.to(self.embeddings.device)]

    def is_text(self, tokens: Tokens) -> torch.Tensor:
        """Slots that hold text, `(batch, length)`: no visual token, no padding, no filler."""
        text = self._is_visual(tokens).logical_not()
        present = self._present(tokens)
        return text if present is None else text & present

    def text_slots(self, tokens: Tokens) -> torch.Tensor:
        """Slots that hold no visual token, ascending, filled up at the left, `(batch, texts)`."""
        visual_first = torch.sort(self._is_visual(tokens).to(torch.uint8), dim=1, descending=True, stable=True)
        return visual_first.indices[:, tokens.length - tokens.texts :]

    @staticmethod
    def _is_visual(tokens: Tokens) -> torch.Tensor:
        flat = torch.zeros(tokens.batch * tokens.length, dtype=torch.bool, device=tokens.slots.device)
        return flat.index_fill(0, tokens.slots, True).view(tokens.batch, -1)

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

    def unrotated_before(self, layer: int) -> AttentionStates:
        """Query and key states of decoder layer `layer - 1` without rotary."""
        return self._unrotated[layer - 1]

    def last_token_attention(self, states: AttentionStates, layer: int, tokens: Tokens, first: int) -> torch.Tensor:
        """Attention of each row's last token in a decoder layer, `(rows, heads, keys)`.

        Args:
            states: The layer's queries and keys.
            layer: Its index.
            tokens: The tokens that were present there.
            first: Keys in `states` that were cached before this pass.
        """
        present = self._present(tokens)
        if present is None:
            last = torch.full((self.batch,), tokens.length - 1, device=states.queries.device)
        else:
            last = (present * torch.arange(tokens.length, device=present.device)).argmax(dim=1)
        keys = self.keys_present(layer, tokens) if first else present
        return attention_from(states, last.unsqueeze(1), first, keys)[:, :, 0]

    def keys_present(self, layer: int, tokens: Tokens) -> torch.Tensor | None:
        """Cached and new keys of a layer that hold a token, `(batch, keys)`; `None` when all do."""
        return self._keys(self._cached_after(layer, tokens))

    def before_layer(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Prunes if a stage lies before this layer, and swaps the arguments that have a sequence dimension.

        Called a second time for a layer when gradient checkpointing recomputes it.
        """
        if layer in self._boundaries:
            hidden = self._enter(layer, hidden, kwargs)
        ahead_of_stage = layer + 1 in self._plan and layer not in self._unrotated
        if ahead_of_stage and layer + 1 in self.engine.stages_with(UNROTATED):
            tokens = self._entered.get(layer, self._current)
            self._unrotated[layer] = self._ahead(layer, tokens, hidden, kwargs, rotated=False)
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

    def _steps(self) -> dict[int, list[Step]]:
        """For each decoder layer the stages before it that remove something."""
        if not self.layouts:
            return {}
        plan: dict[int, list[Step]] = {}
        if self.engine.budget.adaptive:
            for stage, layer in enumerate(self.engine.pruner.layers):
                plan.setdefault(layer, []).append(Step(stage, None))
            return plan
        schedules: list[tuple[int, ...]] = []
        text = self._text_lengths()
        for row, length in zip(range(self.batch), text, strict=True):
            images = [layout for layout, owner in zip(self.layouts, self.rows, strict=True) if owner == row]
            schedules += self.engine.schedules(images, length)
        current = tuple(self.counts)
        for stage, layer in enumerate(self.engine.pruner.layers):
            after = tuple(schedule[stage] for schedule in schedules)
            if after != current:
                plan.setdefault(layer, []).append(Step(stage, after))
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
        for step in self._plan.get(layer, ()):
            assert tokens is not None
            ahead = functools.cache(functools.partial(self._ahead, layer, tokens, hidden, kwargs))
            gather, hidden = prune_images(self, layer, step, tokens, hidden, ahead)
            tokens = gather.after
            if not again:
                bias = None if tokens.bias is None else tokens.bias.flatten()[tokens.slots]
                self._traces.append(StageTrace(layer, gather.before.counts, tokens.counts, tokens.origin, bias))
        if not again:
            self._current = tokens
            self._cache = self._cache if self._cache is not None else cache_in(kwargs)
            self._cached[layer] = self._cached_after(layer, tokens)
            self._entered[layer] = tokens
        return hidden

    def _ahead(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], rotated: bool
    ) -> AttentionStates:
        """Query and key states of a layer that has not run yet, for the tokens that are present before it.

        With rotary the keys cached before this pass stand in front, as attention would see them.
        """
        adapter = self.engine.adapter
        embeddings = self._position_embeddings(tokens, hidden, kwargs, self._state.at(layer))
        arguments = {
            **kwargs,
            "attention_mask": None,
            "position_embeddings": embeddings if rotated else adapter.without_rotation(embeddings),
            "position_ids": self._position_ids(tokens, hidden, kwargs),
        }
        states = self.peek.states(layer, self.engine.layers[layer], hidden, arguments)
        before = self.cached_before(layer) if rotated else 0
        if before:
            cached = cache_in(kwargs).layers[layer].keys[:, :, :before]
            states = replace(states, keys=torch.cat([cached.to(states.keys.dtype), states.keys], dim=2))
        return states

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
        bias = tokens.bias
        if past is not None and past.bias is not None:
            earlier = past.bias_upto(self._seen)
            assert earlier is not None
            here = tokens.columns.new_zeros(tokens.columns.shape, dtype=torch.float32) if bias is None else bias
            bias = torch.cat([earlier.to(here.device), here], dim=1)
        elif bias is not None and self._seen:
            bias = torch.nn.functional.pad(bias, (columns.shape[1] - tokens.length, 0))
        shift = None if past is None else past.shift
        if self.engine.positions == "pack" and tokens.removed is not None:
            total = tokens.removed[:, -1:]
            shift = total if shift is None else shift + total
        fillers = tokens.valid is not None or (past is not None and past.fillers)
        return CachedTokens(columns, self._seen + self.length, fillers, shift, bias)

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
        mask = self._plain_mask(layer, tokens, hidden, kwargs, cached)
        bias = cached.bias_upto(self._seen + self.length)
        return mask if bias is None else weighed_mask(mask, bias.to(hidden.device), hidden)

    def _plain_mask(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], cached: CachedTokens
    ) -> Any:
        ready = kwargs.get("attention_mask")
        if not self._seen and tokens is not None:
            if ready is None and tokens.valid is None:
                return None
            if isinstance(ready, torch.Tensor) and ready.dim() == 4:
                cache = cache_in(kwargs)
                keys = tokens.length if cache is None else cache.get_mask_sizes(tokens.length, layer)[0]
                return tokens.square_mask(ready, keys)
            if isinstance(ready, torch.Tensor) and ready.dim() == 2:
                return self._keys(cached)
        allowed = self._keys(cached)
        allowed = None if allowed is None else allowed.to(hidden.device)
        return self.engine.adapter.causal_mask(hidden, allowed, cache_in(kwargs), layer)

    def _position_embeddings(
        self, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> Any:
        embeddings = kwargs.get("position_embeddings")
        shift = None if past is None else past.shift
        packed = tokens is not None and tokens.removed is not None and self.engine.positions == "pack"
        if shift is None and not packed:
            return embeddings if tokens is None else gather_embeddings(embeddings, tokens)
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
