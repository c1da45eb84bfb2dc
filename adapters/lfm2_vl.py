"""LFM2-VL: SigLIP2 patches of native shape, merged in squares; large pictures are tiles with a thumbnail behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, grid_layout


@register_adapter
class Lfm2VlAdapter(Adapter):
    """`Lfm2VlForConditionalGeneration`; a mark stands before each tile, and one behind the whole picture."""

    model_types = ("lfm2_vl",)
    borders = "after"

    @cached_property
    def vision(self) -> Vision:
        """Rows of the tower are patches in raster order of each view's own shape, padded behind."""
        config: Any = self.model.config
        layers, attentions = find_layers(self.base.get_submodule("vision_tower"))
        return Vision(layers, attentions, (len(layers) - 1,), merge=int(config.downsample_factor))

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A grid for each tile and thumbnail, `spatial_shapes` being their rows and columns of patches."""
        side = self.vision.merge
        return [grid_layout(height // side, width // side) for height, width in _shapes(inputs)]

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Drops the padding of each view, and averages squares of patches."""
        side = self.vision.merge
        shapes = _shapes(inputs)
        found = []
        for view, (height, width) in zip(rows.unflatten(0, (len(shapes), -1)), shapes, strict=True):
            patches = view[: height * width].unflatten(0, (height, width))
            whole = patches[: height // side * side, : width // side * side]
            found.append(whole.unflatten(1, (-1, side)).unflatten(0, (-1, side)).mean(dim=(1, 3)).flatten(0, 1))
        return torch.cat(found)


def _shapes(inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = inputs["spatial_shapes"].tolist()
    return shapes
