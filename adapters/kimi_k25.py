"""Kimi K2.5: patches in raster order, merged 2 x 2 behind the tower; the frames of a chunk of video are averaged."""

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
class KimiK25Adapter(Adapter):
    """Each chunk of a video, of up to four frames, is one grid of tokens and counts as a video of its own."""

    model_types = ("kimi_k25",)

    @cached_property
    def vision(self) -> Vision:
        """All layers attend over the patches of a picture, or of all frames of a chunk.

        Raises:
            ValueError: Patches are not merged in squares.
        """
        tower: Any = self.base.get_submodule("vision_tower")
        height, width = tower.merge_kernel_size
        if height != width:
            raise ValueError(
                f"merge_kernel_size={(height, width)} of {type(tower).__name__} makes tokens of oblong groups of "
                "patches; only squares are supported"
            )
        layers, attentions = find_layers(tower)
        return Vision(layers, attentions, (len(layers) - 1,), merge=int(height))

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """One view an entry, however many frames were averaged to it."""
        side = self.vision.merge
        return [grid_layout(height // side, width // side) for _, height, width in _grids(inputs)]

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """The mean over the square in all frames of a chunk."""
        if "image_grid_thw" in inputs:
            return super().cells(rows, layouts, inputs)
        grids = _grids(inputs)
        parts = rows.split([frames * height * width for frames, height, width in grids])
        frames = [part.unflatten(0, (count, -1)).mean(dim=0) for part, (count, _, _) in zip(parts, grids, strict=True)]
        return super().cells(torch.cat(frames), layouts, inputs)

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The patches of each entry; the chunks of a video may differ in frames."""
        return list(pixels.split([frames * height * width for frames, height, width in _grids(inputs)]))


def _grids(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Frames, rows and columns of patches of each entry."""
    grids: torch.Tensor = inputs["image_grid_thw"] if "image_grid_thw" in inputs else inputs["video_grid_thw"]
    found: list[list[int]] = grids.tolist()
    return found
