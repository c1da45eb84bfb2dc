"""Gemma 4: pictures of any shape, patches padded to a common number and pooled by place; videos by frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, video_layout


@register_adapter
class Gemma4Adapter(Adapter):
    """`Gemma4ForConditionalGeneration`, and its kin without an encoder, whose patches are tokens already."""

    model_types = ("gemma4", "gemma4_unified")

    @cached_property
    def vision(self) -> Vision:
        """The tower's last layer, pooled in squares in raster order; nothing where there is no tower."""
        tower = getattr(self.base, "vision_tower", None)
        if tower is None:
            return Vision()
        layers, attentions = find_layers(tower)
        side = int(tower.config.pooling_kernel_size)
        return Vision(layers, attentions, (len(layers) - 1,), merge=side)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Grids follow from the places of the patches, columns and rows, which are negative for padding."""
        side = self.vision.merge
        last = inputs[f"{kind}_position_ids"].amax(dim=1).tolist()
        frames = inputs["num_frames_per_video"].tolist() if kind == "video" else [1] * len(last)
        found, start = [], 0
        for number in frames:
            # All frames of a video have the same size.
            column, row = last[start]
            found.append(video_layout(number, (row + 1) // side, (column + 1) // side))
            start += number
        return found

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """The mean of each square of patches, which come first in each view, in raster order; padding follows."""
        side = self.vision.merge
        views = rows.unflatten(0, (sum(layout.views for layout in layouts), -1))
        found, start = [], 0
        for layout in layouts:
            height, width = layout.view_shape
            patches = views[start : start + layout.views, : height * side * width * side]
            squares = patches.unflatten(1, (height, side, width, side))
            found.append(squares.mean(dim=(2, 4)).flatten(0, 2))
            start += layout.views
        return torch.cat(found)

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The frames of each video, the one view of each picture; padding is zeros at the end."""
        return list(pixels.split([layout.views for layout in layouts]))
