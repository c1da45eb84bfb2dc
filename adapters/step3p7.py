"""Step 3.7: crops of a picture, then the whole of it; strided convolutions make one token of 4 x 4 patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, Segment

MERGE = 4
"""Patches along the side of a token: two convolutions of stride 2."""


@register_adapter
class Step3p7Adapter(Adapter):
    """`Step3p7ForConditionalGeneration`; views are the crops in raster order and last the whole picture."""

    model_types = ("step3p7",)

    @cached_property
    def vision(self) -> Vision:
        """The last layer feeds the convolutions."""
        layers, attentions = find_layers(self.base.get_submodule("vision_model"))
        return Vision(layers, attentions, (len(layers) - 1,), merge=MERGE)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Sides follow from the sizes of the two kinds of views."""
        config: Any = self.model.config
        patch = int(config.vision_config.patch_size)
        whole = _shape(inputs["pixel_values"], patch)
        local = inputs.get("pixel_values_local")
        crop = whole if local is None else _shape(local, patch)
        return [crops_layout((count - whole[0] * whole[1]) // (crop[0] * crop[1]), crop, whole) for count in counts]

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Squares of patches in each view, in the order of the tokens."""
        return crops_first(rows, layouts, MERGE)


def _shape(pixels: torch.Tensor, patch: int) -> tuple[int, int]:
    height, width = (int(side) // patch for side in pixels.shape[-2:])
    return -(-height // MERGE), -(-width // MERGE)


@lru_cache(maxsize=1024)
def crops_layout(crops: int, crop: tuple[int, int], whole: tuple[int, int]) -> ImageLayout:
    """A grid for each of some crops, then one for the whole picture.

    Example:
        >>> crops_layout(2, (3, 3), (4, 4)).tokens
        34
    """
    shapes = (*[crop] * crops, whole)
    sizes = [height * width for height, width in shapes]
    return ImageLayout(
        tuple(Segment(*shape) for shape in shapes),
        tuple(range(sum(sizes))),
        views=crops + 1,
        patches_per_view=max(sizes),
        shapes=shapes,
    )


def crops_first(rows: torch.Tensor, layouts: Sequence[ImageLayout], side: int) -> torch.Tensor:
    """Patches of pictures whose tower sees all whole pictures first and then all crops, but whose tokens lie otherwise.

    Args:
        rows: `(rows, ...)`: those of the whole pictures, then those of all crops.
        layouts: Of the pictures; in each the whole one is the last view, after the crops.
        side: Side of the square of rows that makes one patch.

    Returns:
        `(patches, ...)`: of each picture those of the crops, then those of the whole.
    """
    views = [layout.view_shapes for layout in layouts]
    whole = views[0][-1]
    crop = next((shapes[0] for shapes in views if len(shapes) > 1), whole)
    counts = [len(shapes) - 1 for shapes in views]
    sizes = (len(views) * whole[0] * whole[1], sum(counts) * crop[0] * crop[1])
    first, second = rows.split([size * side * side for size in sizes])
    wholes, crops = _pooled(first, whole, len(views), side), _pooled(second, crop, sum(counts), side)
    size = crop[0] * crop[1]
    parts = zip(crops.split([count * size for count in counts]), wholes.chunk(len(views)), strict=True)
    return torch.cat([part for pair in parts for part in pair])


def _pooled(rows: torch.Tensor, shape: tuple[int, int], views: int, side: int) -> torch.Tensor:
    """Means over squares of the rows of some views of one shape."""
    height, width = shape
    return rows.view(views, height, side, width, side, *rows.shape[1:]).mean(dim=(2, 4)).flatten(0, 2)
