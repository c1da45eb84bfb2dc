"""One layer of the vision tower as the tokens of a stage see it."""

from __future__ import annotations

from functools import cached_property

import torch

from vtprune.context import EncoderLayer
from vtprune.engine.taps import AttentionStates
from vtprune.engine.vision import VisionRecord, gather_patches, looked_at
from vtprune.ops.attention import attention_rows, mean_received_attention


class StageEncoderLayer(EncoderLayer):
    """Serves one encoder layer's signals for tokens that stand for known patches.

    Args:
        record: The vision run.
        layer: Index of the encoder layer.
        patches: Patch number of each token, counted through all views of the record, `(batch, tokens)`; -1 for
            separators.
    """

    def __init__(self, record: VisionRecord, layer: int, patches: torch.Tensor) -> None:
        self._record = record
        self._layer = layer
        self._patches = patches

    @cached_property
    def attention(self) -> torch.Tensor:
        """See `EncoderLayer.attention`."""
        return self._by_head(looked_at(self._states, self._record.has_cls), -1.0)

    @cached_property
    def received(self) -> torch.Tensor:
        """See `EncoderLayer.received`."""
        states = self._states
        every = mean_received_attention(states.queries, states.keys, states.scaling)
        return self._by_head(every[:, :, int(self._record.has_cls) :], -1.0)

    @cached_property
    def logits(self) -> torch.Tensor:
        """See `EncoderLayer.logits`."""
        if not self._record.has_cls:
            raise ValueError(
                "this method needs the CLS token's attention logits, but the vision tower has no CLS token; choose a "
                "method without them (vtprune list)"
            )
        queries, keys = self._states.queries[:, :, :1].float(), self._states.keys.float()
        products = (queries @ keys.transpose(-1, -2))[:, :, 0, 1:] * self._states.scaling
        return self._by_head(products, torch.finfo(products.dtype).min)

    @cached_property
    def joint_attention(self) -> torch.Tensor:
        """See `EncoderLayer.joint_attention`."""
        states = self._states
        # Towers have as many key heads as query heads, so that all heads side by side are the full width.
        queries, keys = (part.transpose(1, 2).flatten(2).unsqueeze(1) for part in (states.queries, states.keys))
        scale = queries.shape[-1] ** -0.5
        if self._record.has_cls:
            received = attention_rows(queries[:, :, :1], keys, scale)[:, :, 0, 1:]
        else:
            received = mean_received_attention(queries, keys, scale)
        return self._by_head(received, -1.0)[:, 0]

    @cached_property
    def keys(self) -> torch.Tensor:
        """See `EncoderLayer.keys`."""
        keys = self._states.keys[:, :, int(self._record.has_cls) :].transpose(1, 2)
        return gather_patches(self._here(keys), self._patches, 0.0).transpose(1, 2)

    @cached_property
    def output(self) -> torch.Tensor:
        """See `EncoderLayer.output`."""
        output = self._record.layer_outputs[self._layer][:, int(self._record.has_cls) :]
        return gather_patches(self._here(output), self._patches, 0.0)

    @property
    def _states(self) -> AttentionStates:
        return self._record.states_of(self._layer)

    def _by_head(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """`(views, heads, patches)` to `(batch, heads, tokens)`."""
        return gather_patches(self._here(values.transpose(1, 2)), self._patches, fill).transpose(1, 2)

    def _here(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._patches.device)
