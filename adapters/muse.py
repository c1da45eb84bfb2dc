"""Muse: a tower whose rows lie window by window, and leave it shuffled into squares of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout


@register_adapter
class MuseAdapter(Adapter):
    """`MuseGlimmerForConditionalGeneration` and `MuseSparkForConditionalGeneration`."""

    model_types = ("muse_glimmer", "muse_spark")

    @cached_property
    def vision(self) -> Vision:
        """Squares of patches are gathered at the tower's very end only."""
        return replace(super().vision, blocks=False)

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Brings the windows back into raster order first."""
        config: Any = self.model.config
        window = int(config.vision_config.pos_emb_height)
        order = raster_order(tuple(layouts), self.vision.merge, window, rows.device)
        return super().cells(rows[order], layouts, inputs)


@lru_cache(maxsize=1024)
def raster_order(layouts: tuple[ImageLayout, ...], side: int, window: int, device: torch.device) -> torch.Tensor:
    """Where each patch of raster order lies among rows in window order; kept on the device.

    Args:
        layouts: Of the pictures and videos.
        side: Patches along one side of a token.
        window: Patches along one side of a window.
        device: Of the rows.
    """
    found, start = [], 0
    for layout in layouts:
        height, width = (number * side for number in layout.view_shape)
        across = -(-width // window)
        numbers = torch.arange(height)[:, None] // window * across + torch.arange(width) // window
        order = torch.argsort(torch.argsort(numbers.flatten(), stable=True))
        frames = torch.arange(layout.views)[:, None] * (height * width) + start
        found.append((frames + order).flatten())
        start += layout.views * height * width
    return torch.cat(found).to(device)
