"""ERNIE 4.5 VL: packed grids of patches, merged in squares and, in videos, over neighbouring frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout


@register_adapter
class Ernie45VLAdapter(Adapter):
    """`Ernie4_5_VLMoeForConditionalGeneration`; a view of a video is a group of merged frames."""

    model_types = ("ernie4_5_vl_moe",)

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """The mean over squares, and over the frames that one token of a video stands for."""
        squares = super().cells(rows, layouts, inputs)
        if inputs.get("video_grid_thw") is None:
            return squares
        config: Any = self.model.config
        frames = int(config.vision_config.temporal_merge_size)
        sizes = [layout.total_patches * frames for layout in layouts]
        return torch.cat(
            [
                video.unflatten(0, (layout.views, frames, -1)).mean(dim=1).flatten(0, 1)
                for video, layout in zip(squares.split(sizes), layouts, strict=True)
            ]
        )
