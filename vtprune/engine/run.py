"""One forward pass of a wrapped model: which tokens are present at which layer, and the tensors that go with them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from vtprune.engine.cache_names import cache_in
from vtprune.engine.cache_state import CachedTokens, CacheState, attach_state
from vtprune.engine.checks import DECODER_STATES, UNROTATED
from vtprune.engine.layer_arguments import LayerArguments
from vtprune.engine.pass_inputs import PassInputs
from vtprune.engine.peek import Peek
from vtprune.engine.query_rows import query_rows
from vtprune.engine.selection import Step, prune_images
from vtprune.engine.sequence import Left, Tokens, start_tokens
from vtprune.engine.static_cache import is_static, shorten_static_layers
from vtprune.engine.taps import AttentionStates
from vtprune.engine.views import View, allowed_columns, gather_others
from vtprune.ops.attention import attention_of
from vtprune.reporting import Report, StageTrace

if TYPE_CHECKING:
    from vtprune.engine.engine import Engine
    from vtprune.text_tower import TextEmbeddings


@dataclass(frozen=True)
class Outcome:
    """What a pass leaves behind beside the model's output.

    Args:
        cached: The tokens that the layers from each boundary on have cached.
        traces: The stages that removed something.
        lengths: Tokens of a row that each decoder layer processed, padding included.
    """

    cached: dict[int, CachedTokens] = field(default_factory=dict)
    traces: list[StageTrace] = field(default_factory=list)
    lengths: tuple[int, ...] = ()


class Run:
    """A forward pass of the decoder, from its entry to its exit.

    What needs the device is worked out when it is asked for: a pass that is replayed from a graph asks for little.

    Args:
        engine: The engine of the wrapped model.
        given: What the decoder is given.
        plan: For each decoder layer the stages before it, where that is known; it follows from `given`.
    """

    def __init__(self, engine: Engine, given: PassInputs, plan: dict[int, list[Step]] | None = None) -> None:
        self.engine = engine
        self.given = given
        self.images = given.images
        self.rows = given.images.rows
        self.layouts = given.images.layouts
        self.batch, self.length = given.embeddings.shape[:2]
        self.bytes_per_value = given.embeddings.element_size()
        self.with_gradient = torch.is_grad_enabled()
        self.peek = Peek()
        self._arguments = LayerArguments(self, given.positions)
        self._cache = given.cache
        self._state = given.state or CacheState()
        self.plan = self._steps() if plan is None else plan
        self._boundaries = sorted({*self.plan, *self._state.boundaries})
        self._before: dict[int, Tokens] = {}
        self._entered: dict[int, Tokens | None] = {}
        self._views: dict[tuple[int, tuple[str, bool], int, int], View] = {}
        self._states: dict[int, AttentionStates] = {}
        self._unrotated: dict[int, AttentionStates] = {}
        self.masked_as_cached = False
        self.is_idle = False
        self._last: tuple[View, tuple[str, bool]] | None = None
        self._current: Tokens | None = None
        self._outcome = Outcome()
        self._adopted = False

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """What the first decoder layer is given, `(batch, length, dim)`."""
        return self.engine.adapter.entering(self.given.arguments)

    @cached_property
    def visual(self) -> torch.Tensor:
        """Placeholder positions of this pass, `(batch, length)`."""
        if self.given.visual is not None:
            return self.given.visual
        return torch.zeros(self.batch, self.length, dtype=torch.bool, device=self.given.embeddings.device)

    @cached_property
    def allowed(self) -> torch.Tensor | None:
        """Which prompt columns, old and new, hold real tokens, `(batch, seen + length)`; `None` without padding."""
        return allowed_columns(self.given.mask, self._state, self.seen, self.length)

    @property
    def padding(self) -> torch.Tensor | None:
        """The same for the tokens of this pass alone, `(batch, length)`."""
        return None if self.allowed is None else self.allowed[:, -self.length :]

    @property
    def _present(self) -> Tokens | None:
        """The tokens that are there now."""
        return self._current if self._entered else self._start

    @cached_property
    def _start(self) -> Tokens | None:
        """All tokens of the prompt, where this pass removes some."""
        return start_tokens(self.visual, self.rows, self.counts) if self.plan else None

    @property
    def counts(self) -> list[int]:
        """Visual tokens of each image before pruning."""
        return [layout.tokens for layout in self.layouts]

    @property
    def seen(self) -> int:
        """Tokens cached before this pass, pruned ones included."""
        return self._state.seen

    @property
    def left(self) -> Left | None:
        """What is left of the prompts; `None` when this pass removes nothing."""
        if not self.plan:
            return None
        outcome = self._outcome if self._adopted else self.outcome
        if not outcome.cached:
            return None
        last = outcome.cached[max(outcome.cached)]
        columns = last.columns[:, -outcome.lengths[-1] :]
        return Left(columns - self.seen if self.seen else columns, last.fillers)

    @property
    def is_active(self) -> bool:
        """Whether any layer gets other arguments than the decoder hands out."""
        return bool(self._boundaries)

    @cached_property
    def taps(self) -> set[int]:
        """Decoder layers whose query and key states a stage of this pass needs."""
        stages = self.engine.stages_with(DECODER_STATES)
        return {self.attention_before(layer) for layer in self.plan if layer in stages}

    def attention_before(self, layer: int) -> int:
        """The decoder layer whose queries and keys a stage before `layer` looks at: the last one with attention."""
        number = self.engine.attention_before[layer]
        assert number is not None
        return number

    @cached_property
    def question(self) -> TextEmbeddings:
        """CLIP text embeddings of each row's question; reading it waits for the device once."""
        if self.given.question is not None:
            return self.given.question
        reader, tower, ids = self.engine.question_reader, self.engine.text_tower, self.given.ids
        if ids is None:
            raise ValueError(
                f"{self.engine.pruner.name} reads the question from the prompt's tokens: pass input_ids, not "
                "inputs_embeds alone"
            )
        assert reader is not None
        assert tower is not None
        return tower.encode(reader.read(ids, self.padding))

    def visual_inputs(self, images: Sequence[int]) -> torch.Tensor:
        """What the decoder was given for all tokens of images of one layout, `(images, tokens, dim)`."""
        assert self._start is not None
        slots = self._start.of_images(self._start.slots, images)
        return self.embeddings.flatten(0, 1)[slots.to(self.embeddings.device)]

    def is_text(self, tokens: Tokens) -> torch.Tensor:
        """Slots that hold text, `(batch, length)`: no visual token, no padding, no filler."""
        text = self._is_visual(tokens).logical_not()
        present = self.present(tokens)
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
        return self.seen if cached is None else cached.columns.shape[1] + self.seen - cached.end

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
        present = self.present(tokens)
        if present is None:
            last = torch.full((self.batch,), tokens.length - 1, device=states.queries.device)
        else:
            last = (present * torch.arange(tokens.length, device=present.device)).argmax(dim=1)
        keys = self.keys_present(layer, tokens) if first else present
        return attention_of(query_rows(states, last.unsqueeze(1), first, keys))[:, :, 0]

    def keys_present(self, layer: int, tokens: Tokens) -> torch.Tensor | None:
        """Cached and new keys of a layer that hold a token, `(batch, keys)`; `None` when all do."""
        return self.keys(self._cached_after(layer, tokens))

    @property
    def first_cached(self) -> CachedTokens | None:
        """What the first layer holds, where tokens were removed before it."""
        return self._state.boundaries.get(0)

    def enter_step(self, kwargs: dict[str, Any]) -> None:
        """Before a single token: tells the decoder about its first layer's cache, not about the whole prompt.

        The mask that it then makes is the right one for that layer, and if there is nothing in it to mask, there is
        nothing in those of the layers behind, which hold a part of the same tokens. Where all layers hold the same
        tokens, they can be left alone.
        """
        mask, first = kwargs.get("attention_mask"), self.first_cached
        plain = mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2)
        if self.length > 1 or not self.is_active or not (plain and self.engine.sees_all) or is_static(self._cache, 0):
            return
        if first is not None:
            keys = self.keys(first)
            kwargs["attention_mask"] = keys if keys is None or mask is None else keys.to(mask.device)
        self.masked_as_cached = True
        positions = kwargs.get("position_ids")
        if len(self._boundaries) > 1 or first is None or first.bias is not None or positions is None:
            return
        if self.engine.adapter.slot_positions or (first.shift is not None and positions.dim() != 2):
            return
        if first.shift is not None:
            kwargs["position_ids"] = positions - first.shift.to(positions.device)
        self.is_idle = True

    def before_layer(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Prunes if a stage lies before this layer, and swaps the arguments that have a sequence dimension.

        Called a second time for a layer when gradient checkpointing recomputes it.
        """
        hidden = self._with_injected(layer, hidden)
        if layer in self._boundaries:
            hidden = self._enter(layer, hidden, kwargs)
        if layer in self._unrotated_layers and layer not in self._unrotated:
            tokens = self._entered.get(layer, self._present)
            self._unrotated[layer] = self._ahead(layer, tokens, hidden, kwargs, rotated=False)
        boundary = self._boundary_of(layer)
        if boundary is not None:
            tokens = self._entered[boundary]
            length = hidden.shape[2 if self.engine.adapter.streams == "first" else 1]
            if tokens is not None and length < tokens.length:
                return self._cut(layer, tokens, length, hidden, kwargs)
            view = self._view_at(layer, boundary, hidden, kwargs)
            view.swap_into(kwargs)
            if tokens is not None:
                kwargs.update(gather_others(kwargs, tokens, self.length))
            elif not self.given.injected:
                self._last = view, self.engine.layer_kinds[layer]
        return hidden

    def repeat(self, layer: int, kwargs: dict[str, Any]) -> bool:
        """Gives a layer at which nothing changes what the layer before it got; or tells that it is not such a layer."""
        if self._last is None:
            return False
        view, kind = self._last
        if (
            layer in self._boundaries
            or self.engine.layer_kinds[layer] != kind
            or self.engine.adapter.key_sources[layer] != layer
            or not view.replaces(kwargs)
        ):
            return False
        view.swap_into(kwargs)
        return True

    def _cut(
        self, layer: int, tokens: Tokens, length: int, hidden: torch.Tensor, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Arguments of a layer for which the decoder has cut the sequence to its last `length` tokens.

        Decoders whose last layers attend to the keys of earlier ones do so where only those tokens' logits count.
        """
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = tokens.key_columns(mask)
        if kwargs.get("position_embeddings") is not None and self._arguments.is_packed(tokens):
            positions = self._arguments.moved(tokens, hidden, kwargs, self._state.at(layer))[..., -length:]
            kwargs["position_embeddings"] = self.engine.adapter.rotary(hidden, positions, layer)
        return hidden

    def _with_injected(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Adds what is to be added before this layer to the visual tokens that came so far."""
        if layer not in self.given.injected:
            return hidden
        boundary = self._boundary_of(layer - 1)
        tokens = self._start if boundary is None else self._entered[boundary]
        assert tokens is not None
        tokens = tokens.to(hidden.device)
        added = self.given.injected[layer].to(hidden.device, hidden.dtype)[tokens.numbers]
        return hidden.flatten(0, 1).index_add(0, tokens.slots, added).view_as(hidden)

    @property
    def outcome(self) -> Outcome:
        """What the layers that have run so far leave behind."""
        lengths = [self.length] * len(self.engine.layers)
        for layer, tokens in self._entered.items():
            if tokens is not None:
                lengths[layer:] = [tokens.length] * (len(lengths) - layer)
        return replace(self._outcome, lengths=tuple(lengths))

    def adopt(self, outcome: Outcome, cache: Any) -> None:
        """Takes over what a replay of a pass like this one left behind, in the cache that it filled."""
        self._outcome, self._cache, self._adopted = outcome, cache, True

    def finish(self) -> None:
        """Writes down what the cache now holds, and the report."""
        outcome = self.outcome if self.layouts and not self._adopted else self._outcome
        if self._cache is not None and (self._boundaries or self._state.seen or self._adopted):
            padding = self.allowed if self.length > 1 else self._state.padding
            state = attach_state(self._cache)
            state.boundaries = {**self._state.boundaries, **outcome.cached}
            state.seen, state.padding = self.seen + self.length, padding
        if self.layouts:
            self.engine.last_report = self._report(outcome)

    @cached_property
    def _unrotated_layers(self) -> set[int]:
        """Layers that a stage of this pass wants to see without rotary."""
        return {self.attention_before(layer) for layer in self.engine.stages_with(UNROTATED) if layer in self.plan}

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
        return [int(count) + self.seen for count in text.sum(1).tolist()]

    def _enter(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        again = layer in self._entered
        tokens = self._before.get(layer, self._present)
        if tokens is not None:
            tokens = tokens.to(hidden.device)
            self._before[layer] = tokens
        for step in self.plan.get(layer, ()):
            assert tokens is not None
            ahead = functools.cache(functools.partial(self._ahead, layer, tokens, hidden, kwargs))
            gather, hidden = prune_images(self, layer, step, tokens, hidden, ahead)
            tokens = gather.after
            if not again:
                bias = None if tokens.bias is None else tokens.bias.flatten()[tokens.slots]
                self._outcome.traces.append(StageTrace(layer, gather.before.counts, tokens.counts, tokens.origin, bias))
        if not again:
            self._current = tokens
            self._cache = self._cache if self._cache is not None else cache_in(kwargs)
            if tokens is not None and not self.seen:
                # Not before the decoder has made its mask, which is as long as its first layer.
                shorten_static_layers(self._cache, layer, self.length - tokens.length)
            self._outcome.cached[layer] = self._cached_after(layer, tokens)
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
        embeddings = self._arguments.position_embeddings(layer, tokens, hidden, kwargs, past)
        present = None if tokens is None else self.present(tokens)
        arguments = {
            **kwargs,
            "attention_mask": adapter.ahead_mask(adapter.plane(hidden), present),
            "position_embeddings": embeddings if rotated else adapter.without_rotation(embeddings),
            "position_ids": self._arguments.position_ids(layer, tokens, hidden, kwargs, past),
        }
        if tokens is not None:
            arguments.update(gather_others(kwargs, tokens, self.length))
        # A layer on another device works there; the method works where the states come from.
        states = self.peek.states(layer, self.engine.layer_forwards[layer], hidden, arguments).to(hidden.device)
        if before:
            cached = cache_in(kwargs).layers[layer].keys[:, :, :before]
            if cached.shape[1] != states.keys.shape[1] or cached.shape[-1] != states.keys.shape[-1]:
                raise ValueError(
                    f"{self.engine.pruner.name} looks at the keys of layer {layer} ahead of a stage, and the cache "
                    "holds latents instead of keys; start from an empty cache or choose another method"
                )
            states = replace(states, keys=torch.cat([cached.to(states.keys), states.keys], dim=2))
        return states

    def _view_at(self, layer: int, boundary: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> View:
        """The arguments for a layer; layers of one kind that got the same arguments share theirs."""
        replaced = (kwargs.get("attention_mask"), kwargs.get("position_embeddings"), kwargs.get("position_ids"))
        adapter = self.engine.adapter
        kind = self.engine.layer_kinds[layer]
        source = adapter.key_sources[layer]
        if source != layer:
            # It attends to keys that are there already, under the mask with which they were made.
            shared = [view for (other, same, *_), view in self._views.items() if (other, same) == (boundary, kind)]
            return shared[-1]
        key = boundary, kind, id(replaced[0]), id(replaced[1])
        if key not in self._views:
            tokens = self._entered[boundary]
            past = self._state.at(boundary)
            if not kind[1]:
                mask = self._arguments.recurrent_mask(tokens, hidden, kwargs)
            else:
                mask = self._arguments.mask(layer, tokens, hidden, kwargs, self._outcome.cached[boundary])
            self._views[key] = View(
                attention_mask=mask,
                position_embeddings=self._arguments.position_embeddings(layer, tokens, hidden, kwargs, past),
                position_ids=self._arguments.position_ids(layer, tokens, hidden, kwargs, past),
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
        columns = tokens.columns + self.seen
        if tokens.valid is not None:
            columns = columns.masked_fill(~tokens.valid, -1)
        if self.seen:
            before = torch.arange(self.seen, device=columns.device).expand(self.batch, -1)
            columns = torch.cat([before if past is None else past.upto(self.seen).to(columns.device), columns], dim=1)
        bias = tokens.bias
        if past is not None and past.bias is not None:
            earlier = past.bias_upto(self.seen)
            assert earlier is not None
            here = tokens.columns.new_zeros(tokens.columns.shape, dtype=torch.float32) if bias is None else bias
            bias = torch.cat([earlier.to(here.device), here], dim=1)
        elif bias is not None and self.seen:
            bias = torch.nn.functional.pad(bias, (columns.shape[1] - tokens.length, 0))
        shift = None if past is None else past.shift
        if self._arguments.is_packed(tokens):
            gone = self._arguments.total_shift(tokens)
            shift = gone if shift is None else shift + gone
        fillers = tokens.valid is not None or (past is not None and past.fillers)
        return CachedTokens(columns, self.seen + self.length, fillers, shift, bias)

    def keys(self, cached: CachedTokens) -> torch.Tensor | None:
        """Which cached and new slots may be attended to, `(batch, slots)`; `None` for all."""
        return cached.keys(self.allowed, self.seen + self.length)

    def present(self, tokens: Tokens) -> torch.Tensor | None:
        """Slots of this pass that hold a real token, `(batch, length)`; `None` when all do."""
        if self.padding is None:
            return tokens.valid
        here = tokens.last_dim(self.padding.to(tokens.columns.device))
        return here if tokens.valid is None else here & tokens.valid

    def _report(self, outcome: Outcome) -> Report:
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
            traces=outcome.traces,
            visual=self.visual,
            lengths=outcome.lengths,
            batch=self.batch,
            shape=self.engine.shape,
            bytes_per_value=self.bytes_per_value,
            captured=self._adopted,
        )
