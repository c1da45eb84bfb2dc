"""HunYuan-VL: newline, begin and end tokens among the image features, and rotary axes without one for plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment


@register_adapter
class HunYuanVLAdapter(Adapter):
    """`HunYuanVLForConditionalGeneration`."""

    model_types = ("hunyuan_vl",)

    @cached_property
    def vision(self) -> Vision:
        """Patches in raster order; the patch merger after the tower is a convolution over whole pictures."""
        return replace(super().vision, blocks=False)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Rows of merged patches, each closed by a newline token, between a begin and an end token."""
        grids = inputs["image_grid_thw"]
        side = self.vision.merge
        return [framed_layout(height // side, width // side) for _, height, width in grids.tolist()]

    def rotary_positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """All axes of the rotary sections: order, width, height and picture."""
        parameters = getattr(self.text_config, "rope_parameters", None) or {}
        axes = len(parameters.get("mrope_section") or ())
        # Plain text positions may stand before them, as one row more.
        return position_ids[1:] if position_ids.dim() == 3 and position_ids.shape[0] == axes + 1 else position_ids


@lru_cache(maxsize=1024)
def framed_layout(height: int, width: int) -> ImageLayout:
    """The layout of a picture of `height x width` merged patches.

    Example:
        >>> framed_layout(2, 2).patches
        (-1, 0, 1, -1, 2, 3, -1, -1)
    """
    rows = torch.nn.functional.pad(torch.arange(height * width).view(height, width), (0, 1), value=-1)
    mark = Segment(1, 0, newline=True)
    return ImageLayout(
        (mark, Segment(height, width, newline=True), mark),
        (-1, *rows.flatten().tolist(), -1),
        views=1,
        patches_per_view=height * width,
    )
