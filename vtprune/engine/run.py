"""One forward pass of a wrapped model: which tokens are present at which layer, and the tensors that go with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from vtprune.engine.cache_names import cache_in
from vtprune.engine.cache_state import CachedTokens, CacheState, attach_state
from vtprune.engine.checks import DECODER_STATES, UNROTATED
from vtprune.engine.images import Images
from vtprune.engine.peek import Peek
from vtprune.engine.query_rows import attention_from
from vtprune.engine.selection import Step, prune_images
from vtprune.engine.sequence import Tokens, start_tokens
from vtprune.engine.taps import AttentionStates, implementation
from vtprune.engine.views import (
    View,
    allowed_columns,
    gather_block_mask,
    gather_embeddings,
    gather_others,
    weighed_mask,
)
from vtprune.ops.positions import closed_positions
from vtprune.pruner import Signal
from vtprune.reporting import Report, StageTrace

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine
    from vtprune.text_tower import TextEmbeddings


class Run:
    """A forward pass of the decoder, from its entry to its exit.

    Args:
        engine: The engine of the wrapped model.
        embeddings: What the decoder is given, `(batch, length, dim)`.
        entering: Makes of it what the first layer is given.
        cache: The cache it was given, or `None`.
        state: What is known about the tokens in that cache.
        mask: The attention mask it was given, in any form.
        visual: Placeholder positions, `(batch, length)`, when this pass brings images.
        images: The images they belong to.
        positions: The decoder's `position_ids`, in the form in which it was given them.
        ids: The prompt's token ids, `(batch, length)`, where the method reads the question.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        embeddings: torch.Tensor,
        entering: Callable[[], torch.Tensor],
        cache: Any,
        state: CacheState | None,
        mask: Any,
        visual: torch.Tensor | None,
        images: Images,
        positions: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
    ) -> None:
        self.engine = engine
        after_merge = engine.vision.projector is None and Signal.ENCODER_FEATURES in engine.signals
        self.embeddings = entering() if after_merge or Signal.TEXT_EMBEDDINGS in engine.signals else None
        self.bytes_per_value = embeddings.element_size()
        self.images = images
        self.rows = images.rows
        self.layouts = images.layouts
        self.batch, self.length = embeddings.shape[:2]
        if visual is None:
            visual = torch.zeros(self.batch, self.length, dtype=torch.bool, device=embeddings.device)
        self.visual = visual
        self.with_gradient = torch.is_grad_enabled()
        self.peek = Peek()
        self._ids = ids
        self._positions = positions
        self._injected: dict[int, torch.Tensor] = {}
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
        self._views: dict[tuple[int, tuple[str, bool], int, int], View] = {}
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
        stages = self.engine.stages_with(DECODER_STATES)
        return {self.attention_before(layer) for layer in self._plan if layer in stages}

    def attention_before(self, layer: int) -> int:
        """The decoder layer whose queries and keys a stage before `layer` looks at: the last one with attention."""
        number = self.engine.adapter.attention_before(layer)
        assert number is not None
        return number

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
        """Query and key states of the last decoder layer with attention before `layer`."""
        number = self.attention_before(layer)
        if number not in self._states:
            raise RuntimeError(
                f"the attention of decoder layer {number} was not seen; was the attention implementation changed "
                "after wrapping? Unwrap, change it, wrap again"
            )
        return self._states[number]

    def cached_before(self, layer: int) -> int:
        """Slots that `layer` had cached before this pass."""
        cached = self._state.at(layer)
        return self._seen if cached is None else cached.columns.shape[1] + self._seen - cached.end

    def unrotated_before(self, layer: int) -> AttentionStates:
        """Query and key states of the last decoder layer with attention before `layer`, without rotary."""
        return self._unrotated[self.attention_before(layer)]

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
        hidden = self._with_injected(layer, hidden)
        if layer in self._boundaries:
            hidden = self._enter(layer, hidden, kwargs)
        if layer in self._unrotated_layers and layer not in self._unrotated:
            tokens = self._entered.get(layer, self._current)
            self._unrotated[layer] = self._ahead(layer, tokens, hidden, kwargs, rotated=False)
        boundary = self._boundary_of(layer)
        if boundary is not None:
            tokens = self._entered[boundary]
            length = hidden.shape[2 if self.engine.adapter.streams == "first" else 1]
            if tokens is not None and length < tokens.length:
                return self._cut(layer, tokens, length, hidden, kwargs)
            view = self._view_at(layer, boundary, hidden, kwargs)
            kwargs["attention_mask"] = view.attention_mask
            if "position_embeddings" in kwargs:
                kwargs["position_embeddings"] = view.position_embeddings
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = view.position_ids
            if tokens is not None:
                kwargs.update(gather_others(kwargs, tokens, self.length))
        return hidden

    def _cut(
        self, layer: int, tokens: Tokens, length: int, hidden: torch.Tensor, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Arguments of a layer for which the decoder has cut the sequence to its last `length` tokens.

        Decoders whose last layers attend to the keys of earlier ones do so where only those tokens' logits count.
        """
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = tokens.key_columns(mask)
        if kwargs.get("position_embeddings") is not None and self._is_packed(tokens):
            positions = self._moved(tokens, hidden, kwargs, self._state.at(layer))[..., -length:]
            kwargs["position_embeddings"] = self.engine.adapter.rotary(hidden, positions, layer)
        return hidden

    def inject(self, features: Mapping[int, torch.Tensor]) -> None:
        """Takes over features of all visual tokens that the decoder would add before some of its layers."""
        self._injected = dict(features)

    def _with_injected(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Adds what is to be added before this layer to the visual tokens that came so far."""
        if layer not in self._injected:
            return hidden
        boundary = self._boundary_of(layer - 1)
        tokens = self._start if boundary is None else self._entered[boundary]
        assert tokens is not None
        tokens = tokens.to(hidden.device)
        added = self._injected[layer].to(hidden.device, hidden.dtype)[tokens.numbers]
        return hidden.flatten(0, 1).index_add(0, tokens.slots, added).view_as(hidden)

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

    @cached_property
    def _unrotated_layers(self) -> set[int]:
        """Layers that a stage of this pass wants to see without rotary."""
        return {self.attention_before(layer) for layer in self.engine.stages_with(UNROTATED) if layer in self._plan}

    def _boundary_of(self, layer: int) -> int | None:
        """The last boundary that was entered up to a layer."""
        below = [boundary for boundary in self._entered if boundary <= layer]
        return max(below) if below else None

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
        past = self._state.at(layer)
        before = self.cached_before(layer) if rotated else 0
        if before and adapter.slot_positions:
            raise ValueError(
                f"{self.engine.pruner.name} looks at layer {layer} ahead of a stage, whose keys count from the start "
                "of the cache; start from an empty cache or choose another method"
            )
        embeddings = self._position_embeddings(layer, tokens, hidden, kwargs, past)
        present = None if tokens is None else self._present(tokens)
        arguments = {
            **kwargs,
            "attention_mask": adapter.ahead_mask(adapter.plane(hidden), present),
            "position_embeddings": embeddings if rotated else adapter.without_rotation(embeddings),
            "position_ids": self._position_ids(layer, tokens, hidden, kwargs, past),
        }
        if tokens is not None:
            arguments.update(gather_others(kwargs, tokens, self.length))
        states = self.peek.states(layer, self.engine.layers[layer], hidden, arguments)
        if before:
            cached = cache_in(kwargs).layers[layer].keys[:, :, :before]
            if cached.shape[1] != states.keys.shape[1] or cached.shape[-1] != states.keys.shape[-1]:
                raise ValueError(
                    f"{self.engine.pruner.name} looks at the keys of layer {layer} ahead of a stage, and the cache "
                    "holds latents instead of keys; start from an empty cache or choose another method"
                )
            states = replace(states, keys=torch.cat([cached.to(states.keys.dtype), states.keys], dim=2))
        return states

    def _view_at(self, layer: int, boundary: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> View:
        """The arguments for a layer; layers of one kind that got the same arguments share theirs."""
        replaced = (kwargs.get("attention_mask"), kwargs.get("position_embeddings"), kwargs.get("position_ids"))
        adapter = self.engine.adapter
        kind = adapter.layer_kind(layer), adapter.attends(layer)
        source = adapter.key_sources[layer]
        if source != layer:
            # It attends to keys that are there already, under the mask with which they were made.
            shared = [view for (other, same, *_), view in self._views.items() if (other, same) == (boundary, kind)]
            return shared[-1]
        key = boundary, kind, id(replaced[0]), id(replaced[1])
        if key not in self._views:
            tokens = self._entered[boundary]
            past = self._state.at(boundary)
            if not adapter.attends(layer):
                mask = self._recurrent_mask(tokens, hidden, kwargs, self._cached[boundary])
            else:
                mask = self._mask(layer, tokens, hidden, kwargs, self._cached[boundary])
            self._views[key] = View(
                attention_mask=mask,
                position_embeddings=self._position_embeddings(layer, tokens, hidden, kwargs, past),
                position_ids=self._position_ids(layer, tokens, hidden, kwargs, past),
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
        if self._is_packed(tokens):
            assert tokens.removed is not None
            grid = self._grid_positions
            gone = tokens.removed[:, -1:] if grid is None else self._closed(tokens).amax(dim=(0, 2)).unsqueeze(1)
            shift = gone if shift is None else shift + gone
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
            if isinstance(ready, BlockMask):
                return gather_block_mask(ready, tokens)
        allowed = self._keys(cached)
        allowed = None if allowed is None else allowed.to(hidden.device)
        plane = self.engine.adapter.plane(hidden)
        columns = cached.upto(self._seen + self.length).to(hidden.device)
        if self._allowed is not None:
            left = (self._allowed.cumsum(1) == 0).sum(1, keepdim=True).to(hidden.device)
            columns = columns - left
        return self.engine.adapter.causal_mask(plane, allowed, cache_in(kwargs), layer, columns)

    def _recurrent_mask(
        self, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], cached: CachedTokens
    ) -> Any:
        """Which tokens enter the state of a recurrent layer: those that are left, and no padding."""
        ready = kwargs.get("attention_mask")
        if tokens is None or (ready is None and tokens.valid is None):
            return ready
        present = self._present(tokens)
        if present is None:
            return None if ready is None else ready.new_ones(self.batch, tokens.length)
        return present.to(hidden.device, ready.dtype if isinstance(ready, torch.Tensor) else torch.long)

    def _is_packed(self, tokens: Tokens | None) -> bool:
        return tokens is not None and tokens.removed is not None and self.engine.positions == "pack"

    @cached_property
    def _grid_positions(self) -> torch.Tensor | None:
        """Positions with several numbers a token, `(numbers, batch, length)`; `None` where it has one."""
        if self._positions is None or self._positions.dim() != 3:
            return None
        found = self.engine.adapter.rotary_positions(self._positions)
        return found.expand(-1, self.batch, -1)

    def _closed(self, tokens: Tokens) -> torch.Tensor:
        """How far the present tokens move up when gaps close in such positions, `(numbers, batch, length)`."""
        positions = self._grid_positions
        assert positions is not None
        positions = positions.to(tokens.columns.device)
        left = torch.zeros(self.batch, self.length + 1, dtype=torch.bool, device=tokens.columns.device)
        columns = tokens.columns if tokens.valid is None else tokens.columns.masked_fill(~tokens.valid, self.length)
        left = left.scatter(1, columns, True)[:, : self.length]
        return tokens.last_dim(positions - closed_positions(positions, left))

    def _position_embeddings(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> Any:
        embeddings = kwargs.get("position_embeddings")
        if embeddings is None:
            return None
        if not self._is_packed(tokens) and (past is None or past.shift is None):
            return embeddings if tokens is None else gather_embeddings(embeddings, tokens)
        positions = self._moved(tokens, hidden, kwargs, past)
        return self.engine.adapter.rotary(hidden, positions, layer)

    def _moved(
        self, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> torch.Tensor:
        """Packed positions of the present tokens, `(batch, length)` or `(numbers, batch, length)`."""
        grid = self._grid_positions
        positions = self._plain_positions(hidden, kwargs) if grid is None else grid.to(hidden.device)
        if tokens is not None:
            positions = tokens.last_dim(positions)
            if self._is_packed(tokens):
                assert tokens.removed is not None
                positions = positions - (tokens.removed if grid is None else self._closed(tokens))
        if past is not None and past.shift is not None:
            positions = positions - past.shift.to(hidden.device)
        return positions

    def _plain_positions(self, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Positions of the prompt as layers or decoder got them, or as a decoder counts without any."""
        found = kwargs.get("position_ids")
        if found is None:
            found = self._positions
        if found is None:
            found = torch.arange(self._seen, self._seen + self.length).unsqueeze(0)
        return found.to(hidden.device)

    def _position_ids(
        self, layer: int, tokens: Tokens | None, hidden: torch.Tensor, kwargs: dict[str, Any], past: CachedTokens | None
    ) -> torch.Tensor | None:
        positions: torch.Tensor | None = kwargs.get("position_ids")
        if positions is None:
            return None
        if self.engine.adapter.slot_positions:
            first = self.cached_before(layer)
            return torch.arange(first, first + hidden.shape[1], device=hidden.device).expand(self.batch, -1)
        attention = self.engine.adapter.attention_module(layer)
        if tokens is not None and attention is not None and "flash" in implementation(attention):
            # The rotary tables carry the true positions. Gaps in these would be taken for borders of sequences.
            return torch.arange(self._seen, self._seen + tokens.length, device=hidden.device).expand(self.batch, -1)
        packed = self._is_packed(tokens) or (past is not None and past.shift is not None)
        if packed and self._grid_positions is None:
            return self._moved(tokens, hidden, kwargs, past)
        return positions if tokens is None else tokens.last_dim(positions)

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
