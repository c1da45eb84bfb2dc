"""Hy4-VL: a newline token after each row of 2 x 2 merged patches; sparse attention; several streams of states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.adapters.base import Vision
from vtprune.adapters.indexed_attention import IndexedAttentionAdapter
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment


@register_adapter
class HyV4Adapter(IndexedAttentionAdapter):
    """`HYV4VLForConditionalGeneration`; the tower keeps its patches in raster order."""

    model_types = ("hy_v4_vl",)
    streams = "last"

    @cached_property
    def vision(self) -> Vision:
        """The tower's last layer; a convolution merges its patches."""
        return replace(super().vision, blocks=False)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Frames of rows, each row closed by a newline token."""
        grids = inputs[f"{kind}_grid_thw"] if f"{kind}_grid_thw" in inputs else inputs["image_grid_thw"]
        sizes = grids.tolist() if isinstance(grids, torch.Tensor) else grids
        side = self.vision.merge
        return [lined_layout(frames, height // side, width // side) for frames, height, width in sizes]


@lru_cache(maxsize=1024)
def lined_layout(frames: int, height: int, width: int) -> ImageLayout:
    """The layout of frames of which each row of patches is followed by a newline token.

    Example:
        >>> lined_layout(2, 1, 2).patches
        (0, 1, -1, 2, 3, -1)
    """
    patches: list[int] = []
    for start in range(0, frames * height * width, width):
        patches += [*range(start, start + width), -1]
    segments = (Segment(height, width, newline=True),) * frames
    return ImageLayout(segments, tuple(patches), views=frames, patches_per_view=height * width)
