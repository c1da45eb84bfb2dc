"""Molmo 2: a picture in low resolution, then in high resolution from overlapping crops; attention pools patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment, video_layout
from vtprune.pruner import Signal


@register_adapter
class Molmo2Adapter(Adapter):
    """`Molmo2ForConditionalGeneration`; view 0 is the low resolution, view 1 the high one, stitched of crops."""

    model_types = ("molmo2",)

    @cached_property
    def vision(self) -> Vision:
        """Not seen through: tokens are pooled across crops that overlap."""
        return Vision()

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Grids of tokens, as the processor counts them."""
        if kind == "video":
            return [video_layout(*grid) for grid in inputs["video_grids"].tolist()]
        return [resolutions_layout(*grid) for grid in inputs["image_grids"].tolist()]

    def pictures(self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """The patches that each token is pooled from: the number of crops of a picture is not told."""
        pooling = next(value for name, value in inputs.items() if name.endswith("token_pooling"))
        patches = pixels.flatten(0, -2)[pooling.clamp_min(0)]
        return patches.masked_fill((pooling < 0).unsqueeze(-1), 0).flatten(1)

    @cached_property
    def missing(self) -> dict[Signal, str]:
        """No signal of the tower."""
        reason = (
            f"{type(self.model).__name__} pools tokens from patches of overlapping crops, of which the margins belong "
            "to no token: attention within a crop is no distribution over tokens"
        )
        gone = dict.fromkeys((Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_LAYERS), reason)
        return super().missing | gone


@lru_cache(maxsize=1024)
def resolutions_layout(low_height: int, low_width: int, height: int, width: int) -> ImageLayout:
    """A grid of tokens in low resolution, then one in high resolution where there is any.

    Example:
        >>> resolutions_layout(3, 3, 5, 4).tokens
        29
    """
    shapes = tuple(shape for shape in ((low_height, low_width), (height, width)) if shape[0] * shape[1])
    sizes = [rows * columns for rows, columns in shapes]
    segments = tuple(Segment(*shape) for shape in shapes)
    return ImageLayout(
        segments,
        tuple(range(sum(sizes))),
        views=len(shapes),
        patches_per_view=max(sizes),
        shapes=shapes if len(set(shapes)) > 1 else (),
    )
