"""One layer of the vision tower as the tokens of a stage see it."""

from __future__ import annotations

from functools import cached_property

import torch

from vtprune.context import EncoderLayer
from vtprune.engine.taps import AttentionStates
from vtprune.engine.vision import VisionRecord, gather_patches, joint_heads
from vtprune.ops.attention import attention_rows


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
        return self._by_head(self._record.looked_at(self._layer), -1.0)

    @cached_property
    def received(self) -> torch.Tensor:
        """See `EncoderLayer.received`."""
        return self._by_head(self._record.received(self._layer), -1.0)

    @cached_property
    def logits(self) -> torch.Tensor:
        """See `EncoderLayer.logits`."""
        if not self._has_cls:
            raise ValueError(
                "this method needs the CLS token's attention logits, but the vision tower has no CLS token; choose a "
                "method without them (vtprune list)"
            )
        products = []
        for states in self._states:
            queries, keys = states.queries[:, :, self._cls].float(), states.keys.float()
            products.append((queries @ keys.transpose(-1, -2))[:, :, 0].transpose(1, 2) * states.scaling)
        return self._by_head(self._record.patches(products), torch.finfo(torch.float32).min)

    @cached_property
    def joint_attention(self) -> torch.Tensor:
        """See `EncoderLayer.joint_attention`."""
        if not self._has_cls:
            return self._by_head(self._record.joint_received(self._layer), -1.0)[:, 0]
        found = []
        for states in self._states:
            queries, keys, scale = joint_heads(states)
            found.append(attention_rows(queries[:, :, self._cls], keys, scale)[:, :, 0].transpose(1, 2))
        return self._by_head(self._record.patches(found), -1.0)[:, 0]

    @cached_property
    def keys(self) -> torch.Tensor:
        """See `EncoderLayer.keys`."""
        return gather_patches(self._here(self._record.keys_of(self._layer)), self._patches, 0.0).transpose(1, 2)

    @cached_property
    def output(self) -> torch.Tensor:
        """See `EncoderLayer.output`."""
        return gather_patches(self._here(self._record.output_of(self._layer)), self._patches, 0.0)

    @property
    def _states(self) -> list[AttentionStates]:
        return self._record.states_of(self._layer)

    @property
    def _has_cls(self) -> bool:
        return self._record.adapter.vision.has_cls

    @property
    def _cls(self) -> slice:
        row = self._record.adapter.vision.cls
        return slice(0, 1) if row == 0 else slice(-1, None)

    def _by_head(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """`(patches, heads)` to `(batch, heads, tokens)`."""
        return gather_patches(self._here(values), self._patches, fill).transpose(1, 2)

    def _here(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._patches.device)
