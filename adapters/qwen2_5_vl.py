"""Qwen2.5-VL and models with its tower, which sorts the squares of patches by attention windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout


@register_adapter
class Qwen2_5VLAdapter(Adapter):
    """The order of the windows holds from the first layer to the merger, in layers with full attention too."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "exaone4_5", "hyperclovax_vision_v2")

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """The mean over each square, brought back from the order of the windows."""
        config: Any = self.model.config
        vision = config.vision_config
        side = self.vision.merge
        window = int(vision.window_size) // side // int(vision.patch_size)
        squares = rows.unflatten(0, (-1, side * side)).mean(dim=1)
        parts = squares.split([layout.total_patches for layout in layouts])
        return torch.cat(
            [part[window_places(layout, window, rows.device)] for part, layout in zip(parts, layouts, strict=True)]
        )


@register_adapter
class Qwen2_5OmniAdapter(Qwen2_5VLAdapter):
    """The thinker of Qwen2.5-Omni, whose tower has queries, keys and values under names of its own."""

    model_types = ("qwen2_5_omni_thinker",)

    @cached_property
    def vision(self) -> Vision:
        """The blocks of the tower, each with one attention module."""
        tower: Any = self.base.get_submodule("visual")
        layers = tuple(tower.blocks)
        attentions = tuple(layer.attn for layer in layers)
        return Vision(layers, attentions, (len(layers) - 1,), merge=int(tower.config.spatial_merge_size), blocks=True)


@lru_cache(maxsize=1024)
def window_places(layout: ImageLayout, window: int, device: torch.device) -> torch.Tensor:
    """Where the tower has each token of an image or video: frame by frame, and in each window after window.

    Args:
        layout: One token a patch, views of one shape.
        window: Tokens along one side of a window; those at the right and lower edge may be smaller.
        device: Of the result, which stays there.

    Example:
        >>> from vtprune.layout import grid_layout
        >>> window_places(grid_layout(2, 3), 2, torch.device("cpu")).tolist()
        [0, 1, 4, 2, 3, 5]
    """
    height, width = layout.view_shape
    across = -(-width // window)
    windows = torch.arange(height)[:, None] // window * across + torch.arange(width) // window
    places = windows.flatten().argsort(stable=True).argsort()
    first = torch.arange(layout.views)[:, None] * height * width
    return (first + places).flatten().to(device)
