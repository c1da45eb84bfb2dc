"""The context that methods get: a lazy view of the running prefill for one group of equally sized images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from vtprune.context import Context, EncoderLayer
from vtprune.engine.encoder_view import StageEncoderLayer
from vtprune.engine.query_rows import query_rows
from vtprune.engine.sequence import Tokens
from vtprune.engine.taps import AttentionStates
from vtprune.engine.vision import VisionRecord, gather_patches, grids_on, patch_numbers, view_tokens_on
from vtprune.ops.attention import QueryRows, attention_of, strongest_received
from vtprune.pruner import Signal

if TYPE_CHECKING:
    from vtprune.engine.run import Run
    from vtprune.text_tower import TextEmbeddings


Ahead = Callable[[bool], AttentionStates]
"""Query and key states of the layer that the survivors will enter, with (`True`) or without rotary."""


class StageContext(Context):
    """One group of images at one stage of a `Run`.

    Args:
        run: The prefill.
        stage: Number of the stage among the method's.
        layer: Decoder layer of the stage.
        tokens: All tokens present before it.
        hidden: States that enter the layer, `(rows, length, dim)`.
        images: Numbers of the group's images.
        ahead: The states of `layer` itself.
    """

    def __init__(
        self,
        run: Run,
        stage: int,
        layer: int,
        tokens: Tokens,
        hidden: torch.Tensor,
        images: Sequence[int],
        ahead: Ahead,
    ) -> None:
        self._run = run
        pruner = run.engine.pruner
        self._signals = pruner.stage_signals(stage) | (pruner.optional_signals & run.engine.signals)
        self._ahead = ahead
        self.stage = stage
        self._tokens = tokens
        self._hidden = hidden
        self._images = list(images)
        self.layer = layer
        self.depth = len(run.engine.layers)
        self.batch = len(self._images)
        self.tokens = tokens.counts[self._images[0]]
        self.layout = run.layouts[self._images[0]]
        self.has_cls = run.engine.vision.has_cls
        self.gives_cls = Signal.ENCODER_CLS in self._signals
        self._record = run.images.records[self._images[0]]
        self._entries = [run.images.entries[image] for image in self._images]
        device = hidden.device.type
        self._autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    @cached_property
    def hidden(self) -> torch.Tensor:
        """See `Context.hidden`."""
        return self._hidden.flatten(0, 1)[self._slots]

    @cached_property
    def origin(self) -> torch.Tensor:
        """See `Context.origin`."""
        return self._tokens.of_images(self._tokens.origin, self._images)

    @cached_property
    def is_patch(self) -> torch.Tensor:
        """See `Context.is_patch`."""
        return self._patch_in_image >= 0

    @cached_property
    def encoder_attention(self) -> torch.Tensor:
        """See `Context.encoder_attention`."""
        record = self._vision(Signal.ENCODER_ATTENTION)
        return gather_patches(self._here(record.attention), self._patch, -1.0).transpose(1, 2)

    @cached_property
    def encoder_keys(self) -> torch.Tensor:
        """See `Context.encoder_keys`."""
        record = self._vision(Signal.ENCODER_KEYS)
        return gather_patches(self._here(record.keys), self._patch, 0.0).transpose(1, 2)

    @cached_property
    def encoder_features(self) -> torch.Tensor:
        """See `Context.encoder_features`."""
        record = self._vision(Signal.ENCODER_FEATURES)
        if self._run.engine.vision.projector is None:
            return self._here(self._run.visual_inputs(self._images)).gather(
                1, self.origin.unsqueeze(-1).expand(-1, -1, self._hidden.shape[-1])
            )
        return gather_patches(self._here(record.patch_features), self._patch, 0.0)

    @cached_property
    def encoder_cls(self) -> torch.Tensor:
        """See `Context.encoder_cls`."""
        record = self._vision(Signal.ENCODER_CLS)
        cls = self._here(record.cls)
        if self._is_whole_record:
            return cls.view(self.batch, self.layout.views, -1)
        return torch.stack([cls[first : first + self.layout.views] for first in self._view_offsets])

    def encoder_layer(self, number: int) -> EncoderLayer:
        """See `Context.encoder_layer`."""
        record = self._vision(Signal.ENCODER_LAYERS)
        if number not in self._encoder_layers:
            named = self._run.engine.pruner.stage_encoder_layers(self.stage)[number]
            layer = named % len(self._run.engine.vision.layers)
            self._encoder_layers[number] = StageEncoderLayer(record, layer, self._patch)
        return self._encoder_layers[number]

    @cached_property
    def image_hash(self) -> torch.Tensor:
        """See `Context.image_hash`."""
        record = self._vision(Signal.IMAGE_HASH)
        assert record.image_hash is not None
        hashes = self._here(record.image_hash)
        if self._is_identity:
            return hashes
        # Of an image in several entries, each counts by its place.
        weights = torch.arange(len(self._entries[0]), device=hashes.device) * 0x9E3779B97F4A7C1 | 1
        return torch.stack([(hashes[entries.start : entries.stop] * weights).sum() for entries in self._entries])

    def encode_smaller(self, height: int, width: int) -> torch.Tensor:
        """See `Context.encode_smaller`."""
        record = self._vision(Signal.PIXELS)
        enabled, dtype = self._autocast
        with torch.autocast(record.pixels.device.type, enabled=enabled, dtype=dtype):
            encoded = self._run.engine.adapter.encode_smaller(self._of_entries(record.pixels), height, width)
        return self._here(encoded).to(self._hidden.dtype)

    @cached_property
    def clip_text(self) -> torch.Tensor:
        """See `Context.clip_text`."""
        return self._here(self._question.pieces)[self._rows]

    @cached_property
    def clip_text_mask(self) -> torch.Tensor:
        """See `Context.clip_text_mask`."""
        return self._here(self._question.mask)[self._rows]

    @cached_property
    def clip_text_truncated(self) -> torch.Tensor:
        """See `Context.clip_text_truncated`."""
        return self._here(self._question.truncated)[self._rows]

    @cached_property
    def clip_text_last(self) -> torch.Tensor:
        """See `Context.clip_text_last`."""
        return self._here(self._question.last)[self._rows]

    def clip_project(self, features: torch.Tensor, *, norm: bool = True) -> torch.Tensor:
        """See `Context.clip_project`."""
        self._require(Signal.CLIP_TEXT)
        tower = self._run.engine.text_tower
        assert tower is not None
        return tower.project(features, norm=norm)

    @cached_property
    def text(self) -> torch.Tensor:
        """See `Context.text`."""
        self._require(Signal.TEXT_EMBEDDINGS)
        return self._here(self._run.embeddings)[self._rows]

    @cached_property
    def text_mask(self) -> torch.Tensor:
        """See `Context.text_mask`."""
        self._require(Signal.TEXT_EMBEDDINGS)
        mask = ~self._run.visual
        if self._run.padding is not None:
            mask = mask & self._run.padding
        return self._here(mask)[self._rows]

    @cached_property
    def inputs(self) -> torch.Tensor:
        """See `Context.inputs`."""
        self._require(Signal.TEXT_EMBEDDINGS)
        return self._here(self._run.visual_inputs(self._images))

    @property
    def scaling(self) -> float:  # type: ignore[override]
        """See `Context.scaling`."""
        if self._signals & {Signal.NEXT_STATES, Signal.NEXT_UNROTATED_STATES}:
            return self._ahead(Signal.NEXT_STATES in self._signals).scaling
        return self._run.states_before(self.layer).scaling

    @property
    def slots(self) -> torch.Tensor:
        """See `Context.slots`."""
        return self._columns

    @cached_property
    def text_slots(self) -> torch.Tensor:
        """See `Context.text_slots`."""
        return self._run.text_slots(self._tokens)[self._rows]

    @cached_property
    def text_present(self) -> torch.Tensor:
        """See `Context.text_present`."""
        return self._run.is_text(self._tokens)[self._rows].gather(1, self.text_slots)

    @cached_property
    def text_follows(self) -> torch.Tensor:
        """See `Context.text_follows`."""
        return self.text_present & (self.text_slots > self._columns[:, -1:])

    def columns(self, slots: torch.Tensor) -> torch.Tensor:
        """See `Context.columns`."""
        return self._tokens.columns[self._rows].gather(1, slots)

    def hidden_at(self, slots: torch.Tensor) -> torch.Tensor:
        """See `Context.hidden_at`."""
        return self._hidden[self._rows.unsqueeze(1), slots]

    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        """See `Context.final_norm`."""
        normed: torch.Tensor = self._run.engine.adapter.final_norm.forward(states)
        return normed

    @cached_property
    def last_token_attention(self) -> torch.Tensor:
        """See `Context.last_token_attention`."""
        self._require(Signal.DECODER_ATTENTION)
        seen = self._run.attention_before(self.layer)
        return self._last_token_attention(self._run.states_before(self.layer), seen, self._run.cached_before(seen))

    def attention_from(self, slots: torch.Tensor) -> torch.Tensor:
        """See `Context.attention_from`."""
        return attention_of(self._query_rows(slots))

    def strongest_attention_from(self, slots: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """See `Context.strongest_attention_from`."""
        return strongest_received(self._query_rows(slots), counted)

    def queries_at(self, slots: torch.Tensor) -> torch.Tensor:
        """See `Context.queries_at`."""
        return self._states_at(self._decoder_states().queries, slots)

    def keys_at(self, slots: torch.Tensor) -> torch.Tensor:
        """See `Context.keys_at`."""
        return self._states_at(
            self._decoder_states().keys, slots + self._run.cached_before(self._run.attention_before(self.layer))
        )

    @cached_property
    def unrotated_last_token_attention(self) -> torch.Tensor:
        """See `Context.unrotated_last_token_attention`."""
        self._require(Signal.UNROTATED_STATES)
        seen = self._run.attention_before(self.layer)
        return self._last_token_attention(self._run.unrotated_before(self.layer), seen, 0)

    @cached_property
    def next_last_token_attention(self) -> torch.Tensor:
        """See `Context.next_last_token_attention`."""
        self._require(Signal.NEXT_STATES)
        return self._last_token_attention(self._ahead(True), self.layer, self._run.cached_before(self.layer))

    @cached_property
    def next_keys(self) -> torch.Tensor:
        """See `Context.next_keys`."""
        self._require(Signal.NEXT_STATES)
        return self._states_at(self._ahead(True).keys, self._columns + self._run.cached_before(self.layer))

    @cached_property
    def next_unrotated_queries(self) -> torch.Tensor:
        """See `Context.next_unrotated_queries`."""
        self._require(Signal.NEXT_UNROTATED_STATES)
        return self._states_at(self._ahead(False).queries, self._columns)

    @cached_property
    def next_unrotated_keys(self) -> torch.Tensor:
        """See `Context.next_unrotated_keys`."""
        self._require(Signal.NEXT_UNROTATED_STATES)
        return self._states_at(self._ahead(False).keys, self._columns)

    @cached_property
    def queries(self) -> torch.Tensor:
        """See `Context.queries`."""
        return self.queries_at(self._columns)

    @cached_property
    def keys(self) -> torch.Tensor:
        """See `Context.keys`."""
        return self.keys_at(self._columns)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """See `Context.project`."""
        enabled, dtype = self._autocast
        with torch.autocast(features.device.type, enabled=enabled, dtype=dtype):
            return self._run.engine.project(features).to(self._hidden.dtype)

    @cached_property
    def grids(self) -> tuple[torch.Tensor, ...]:
        """See `Context.grids`."""
        self._require_untouched("a token grid")
        return grids_on(self.layout, self._hidden.device)

    @cached_property
    def view_tokens(self) -> tuple[torch.Tensor, ...]:
        """See `Context.view_tokens`."""
        self._require_untouched("whole encoder views")
        return view_tokens_on(self.layout, self._hidden.device)

    @cached_property
    def _encoder_layers(self) -> dict[int, EncoderLayer]:
        return {}

    @cached_property
    def _slots(self) -> torch.Tensor:
        return self._tokens.of_images(self._tokens.slots, self._images)

    @cached_property
    def _rows(self) -> torch.Tensor:
        return torch.div(self._slots[:, 0], self._tokens.length, rounding_mode="floor")

    @cached_property
    def _columns(self) -> torch.Tensor:
        return self._slots % self._tokens.length

    @cached_property
    def _key_slots(self) -> torch.Tensor:
        return self._columns + self._run.cached_before(self._run.attention_before(self.layer))

    @cached_property
    def _patch_in_image(self) -> torch.Tensor:
        return patch_numbers(self.layout, self._hidden.device)[self.origin]

    @cached_property
    def _patch(self) -> torch.Tensor:
        """Patch number of each token, counted through all views of the record; -1 for separators."""
        if self._is_whole_record:
            first = torch.arange(self.batch, device=self._hidden.device) * self.layout.total_patches
        else:
            offsets = [self._record.patch_offsets[entries.start] for entries in self._entries]
            first = torch.tensor(offsets, device=self._hidden.device)
        return torch.where(self.is_patch, self._patch_in_image + first.unsqueeze(1), -1)

    @cached_property
    def _is_identity(self) -> bool:
        """Whether the group's images are all entries of the record, in order, so that nothing need be looked up."""
        return self._entries == [range(entry, entry + 1) for entry in range(len(self._record.layouts))]

    @cached_property
    def _is_whole_record(self) -> bool:
        return self._is_identity and len(set(self._record.layouts)) == 1

    @property
    def _view_offsets(self) -> list[int]:
        return [self._record.view_offsets[entries.start] for entries in self._entries]

    def _of_entries(self, values: torch.Tensor) -> torch.Tensor:
        """Rows of a tensor with one row for each entry of the record, those that the images begin with."""
        return values if self._is_identity else torch.stack([values[entries.start] for entries in self._entries])

    @property
    def _question(self) -> TextEmbeddings:
        self._require(Signal.CLIP_TEXT)
        return self._run.question

    def _query_rows(self, slots: torch.Tensor) -> QueryRows:
        self._require(Signal.DECODER_ATTENTION)
        seen = self._run.attention_before(self.layer)
        return query_rows(
            self._run.states_before(self.layer),
            slots,
            self._run.cached_before(seen),
            self._run.keys_present(seen, self._tokens),
            samples=self._rows,
            targets=self._key_slots,
        )

    def _last_token_attention(self, states: AttentionStates, layer: int, first: int) -> torch.Tensor:
        """Attention to the group's tokens from the last token of each row, `(batch, heads, tokens)`."""
        every = self._run.last_token_attention(states, layer, self._tokens, first)
        return every.transpose(1, 2)[self._rows.unsqueeze(1), self._columns + first].transpose(1, 2)

    def _states_at(self, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """States `(rows, heads, length, dim)` at slots `(batch, any)`: `(batch, heads, any, dim)`."""
        return states.transpose(1, 2)[self._rows.unsqueeze(1), slots].transpose(1, 2)

    def _here(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._hidden.device)

    def _require(self, signal: Signal) -> None:
        if signal not in self._signals:
            raise KeyError(
                f"{type(self._run.engine.pruner).__name__} asked for {signal.value!r} without declaring it; "
                f"add Signal.{signal.name} to its signals"
            )

    def _vision(self, signal: Signal) -> VisionRecord:
        self._require(signal)
        return self._record

    def _decoder_states(self) -> AttentionStates:
        self._require(Signal.DECODER_STATES)
        return self._run.states_before(self.layer)
