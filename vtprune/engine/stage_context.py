"""The context that methods get: a lazy view of the running prefill for one group of equally sized images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from vtprune.context import Context
from vtprune.engine.sequence import Tokens
from vtprune.engine.taps import AttentionStates
from vtprune.engine.vision import VisionRecord, gather_patches, grids_on, patch_numbers, view_tokens_on
from vtprune.ops.attention import attention_rows
from vtprune.pruner import Signal

if TYPE_CHECKING:
    from vtprune.engine.run import Run


class StageContext(Context):
    """One group of images at one stage of a `Run`.

    Args:
        run: The prefill.
        layer: Decoder layer of the stage.
        tokens: All tokens present before it.
        hidden: States that enter the layer, `(rows, length, dim)`.
        images: Numbers of the group's images.
    """

    def __init__(self, run: Run, layer: int, tokens: Tokens, hidden: torch.Tensor, images: Sequence[int]) -> None:
        self._run = run
        self._tokens = tokens
        self._hidden = hidden
        self._images = list(images)
        self.layer = layer
        self.depth = len(run.engine.layers)
        self.batch = len(self._images)
        self.tokens = tokens.counts[self._images[0]]
        self.layout = run.layouts[self._images[0]]
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
        assert record.features is not None
        return gather_patches(self._here(record.features), self._patch, 0.0)

    @cached_property
    def encoder_cls(self) -> torch.Tensor:
        """See `Context.encoder_cls`."""
        record = self._vision(Signal.ENCODER_CLS)
        cls = self._here(torch.cat(record.cls, dim=-1))
        if self._is_whole_record:
            return cls.view(self.batch, self.layout.views, -1)
        return torch.stack([cls[first : first + self.layout.views] for first in self._view_offsets])

    @cached_property
    def image_hash(self) -> torch.Tensor:
        """See `Context.image_hash`."""
        record = self._vision(Signal.IMAGE_HASH)
        assert record.image_hash is not None
        hashes = self._here(record.image_hash)
        return hashes if self._is_identity else torch.stack([hashes[source] for source in self._sources])

    @cached_property
    def text(self) -> torch.Tensor:
        """See `Context.text`."""
        self._require(Signal.TEXT_EMBEDDINGS)
        assert self._run.embeddings is not None
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
    def last_token_attention(self) -> torch.Tensor:
        """See `Context.last_token_attention`."""
        self._require(Signal.DECODER_ATTENTION)
        probabilities = self._run.last_token_attention(self.layer, self._tokens)
        return probabilities.transpose(1, 2)[self._rows.unsqueeze(1), self._key_slots].transpose(1, 2)

    @cached_property
    def queries(self) -> torch.Tensor:
        """See `Context.queries`."""
        states = self._decoder_states()
        return states.queries.transpose(1, 2)[self._rows.unsqueeze(1), self._columns].transpose(1, 2)

    @cached_property
    def keys(self) -> torch.Tensor:
        """See `Context.keys`."""
        states = self._decoder_states()
        return states.keys.transpose(1, 2)[self._rows.unsqueeze(1), self._key_slots].transpose(1, 2)

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
        return self._columns + self._run.cached_before(self.layer - 1)

    @cached_property
    def _patch_in_image(self) -> torch.Tensor:
        return patch_numbers(self.layout, self._hidden.device)[self.origin]

    @cached_property
    def _patch(self) -> torch.Tensor:
        """Patch number of each token, counted through all views of the record; -1 for separators."""
        if self._is_whole_record:
            first = torch.arange(self.batch, device=self._hidden.device) * (
                self.layout.views * self.layout.patches_per_view
            )
        else:
            first = torch.tensor(self._view_offsets, device=self._hidden.device) * self.layout.patches_per_view
        return torch.where(self.is_patch, self._patch_in_image + first.unsqueeze(1), -1)

    @property
    def _sources(self) -> list[int]:
        return [self._run.sources[image] for image in self._images]

    @property
    def _is_identity(self) -> bool:
        """Whether the group's images are all the tower's images, in order, so that nothing need be looked up."""
        return self._run.record is not None and self._sources == list(range(len(self._run.record.layouts)))

    @cached_property
    def _is_whole_record(self) -> bool:
        record = self._run.record
        return self._is_identity and record is not None and len(set(record.layouts)) == 1

    @property
    def _view_offsets(self) -> list[int]:
        assert self._run.record is not None
        return [self._run.record.view_offsets[source] for source in self._sources]

    def _here(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._hidden.device)

    def _require(self, signal: Signal) -> None:
        declared = self._run.engine.pruner.signals
        if signal not in declared:
            raise KeyError(
                f"{type(self._run.engine.pruner).__name__} asked for {signal.value!r} without declaring it; "
                f"add Signal.{signal.name} to its signals"
            )

    def _vision(self, signal: Signal) -> VisionRecord:
        self._require(signal)
        assert self._run.record is not None
        return self._run.record

    def _decoder_states(self) -> AttentionStates:
        self._require(Signal.DECODER_STATES)
        return self._run.states_before(self.layer)


def last_row_attention(states: AttentionStates, last: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """Attention of one query row per sample over all keys, `(rows, heads, keys)`.

    Args:
        states: What the layer's attention function was given.
        last: Index of the query row of each sample, `(rows,)`.
        allowed: Keys it may attend to, `(rows, keys)`; `None` for all.
    """
    index = last.view(-1, 1, 1, 1).expand(-1, states.queries.shape[1], 1, states.queries.shape[-1])
    row = states.queries.gather(2, index)
    if isinstance(states.mask, torch.Tensor) and states.mask.dim() == 4:
        mask = states.mask.expand(row.shape[0], -1, -1, -1)
        allowed_row = mask.gather(2, last.view(-1, 1, 1, 1).expand(-1, mask.shape[1], 1, mask.shape[-1]))
        return attention_rows(row, states.keys, states.scaling, allowed_row)[:, :, 0]
    here = None if allowed is None else allowed[:, None, None, :]
    return attention_rows(row, states.keys, states.scaling, here)[:, :, 0]
