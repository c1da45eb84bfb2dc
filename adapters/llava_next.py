"""LLaVA-NeXT (1.6): a thumbnail and a canvas of crops, unpadded, each canvas row closed by a newline token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from vtprune.adapters.llava import LlavaAdapter
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment


@register_adapter
class LlavaNextAdapter(LlavaAdapter):
    """`LlavaNextForConditionalGeneration`; view 0 is the thumbnail, the crops follow in raster order."""

    model_types = ("llava_next",)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Views and unpadding follow from the original sizes, `(images, 2)` as height and width."""
        image_sizes = inputs.get("image_sizes")
        if image_sizes is None:
            raise ValueError(
                f"{type(self.model).__name__} needs image_sizes beside pixel_values; pass all that the processor "
                "returned"
            )
        return anyres_layouts(self.model.config, image_sizes, self.vision.merge)

    def typical_layout(self) -> ImageLayout | None:
        """`None`: the number of tokens depends on the picture."""
        return None


def anyres_layouts(config: Any, image_sizes: Any, merge: int = 1) -> list[ImageLayout]:
    """The token layouts of pictures of some sizes.

    Args:
        config: The model's configuration.
        image_sizes: Height and width of each picture, `(images, 2)`, as a tensor or nested.
        merge: Side of the square of patches that becomes one token.
    """
    view = int(config.vision_config.image_size)
    side = view // int(config.vision_config.patch_size) // merge
    pinpoints = tuple(tuple(pinpoint) for pinpoint in config.image_grid_pinpoints)
    sizes = image_sizes.tolist() if isinstance(image_sizes, torch.Tensor) else image_sizes
    return [anyres_layout((int(height), int(width)), pinpoints, view, side) for height, width in sizes]


@lru_cache(maxsize=1024)
def anyres_layout(
    image_size: tuple[int, int], pinpoints: tuple[tuple[int, ...], ...], view_size: int, side: int
) -> ImageLayout:
    """The token layout of one picture of `image_size` (height, width).

    Args:
        image_size: Size of the original picture.
        pinpoints: Canvas sizes that the model was trained with, (height, width).
        view_size: Side of one view in pixels.
        side: Patches along one side of a view, after merging.

    Example:
        >>> layout = anyres_layout((336, 672), ((336, 672), (672, 336)), 336, 24)
        >>> layout.views, layout.tokens
        (3, 1752)
    """
    rows, columns = get_anyres_image_grid_shape(image_size, [list(pinpoint) for pinpoint in pinpoints], view_size)
    per_view = side * side
    # The canvas of patch numbers goes through the model's own unpadding, so that the two cannot disagree.
    numbers = torch.arange(rows * columns * per_view).view(rows, columns, side, side) + per_view
    canvas = unpad_image(numbers.permute(0, 2, 1, 3).reshape(1, rows * side, columns * side), image_size)[0]
    newline = torch.full((canvas.shape[0], 1), -1)
    patches = [*range(per_view), *torch.cat([canvas, newline], dim=1).flatten().tolist()]
    segments = (Segment(side, side), Segment(canvas.shape[0], canvas.shape[1], newline=True))
    return ImageLayout(
        segments, tuple(patches), views=1 + rows * columns, patches_per_view=per_view, crops=(rows, columns)
    )
