"""VideoLLaMA 3: a token for each patch of a picture, or for 2 x 2 patches of a frame, of which some are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment, video_layout


@register_adapter
class VideoLlama3Adapter(Adapter):
    """The processor chooses the merge size of each picture and video; the tower keeps merged patches together."""

    model_types = ("video_llama_3",)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """All that is encoded; `filled_in` leaves out what the prompt does not hold."""
        return [
            video_layout(frames, height // side, width // side)
            for (frames, height, width), side in zip(_grids(inputs), _sides(inputs), strict=True)
        ]

    def filled_in(
        self, kind: str, layouts: Sequence[ImageLayout], arguments: Mapping[str, Any]
    ) -> Sequence[ImageLayout]:
        """Videos without the tokens that `video_compression_mask` drops."""
        mask = arguments.get("video_compression_mask")
        if kind != "video" or mask is None:
            return layouts
        parts = mask.split([layout.total_patches for layout in layouts])
        return [
            layout if bool(part.all()) else compressed(layout, part)
            for layout, part in zip(layouts, parts, strict=True)
        ]

    def view_rows(self, layout: ImageLayout, inputs: Mapping[str, Any]) -> int:
        """By the merge size of the entry with such views."""
        shape = layout.view_shapes[0]
        sides = [
            side
            for (_, height, width), side in zip(_grids(inputs), _sides(inputs), strict=True)
            if (height // side, width // side) == shape
        ]
        return layout.patches_per_view * sides[0] ** 2

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """The mean over the patches of each square."""
        areas = [side * side for side in _sides(inputs)]
        parts = rows.split([layout.total_patches * area for layout, area in zip(layouts, areas, strict=True)])
        return torch.cat([part.unflatten(0, (-1, area)).mean(dim=1) for part, area in zip(parts, areas, strict=True)])

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The patches of each entry."""
        return list(pixels.split([frames * height * width for frames, height, width in _grids(inputs)]))


def compressed(layout: ImageLayout, kept: torch.Tensor) -> ImageLayout:
    """A video of which only some tokens are left; those of a frame that lost some form no rectangle but a row.

    Example:
        >>> compressed(video_layout(2, 1, 2), torch.tensor([True, True, False, True])).patches
        (0, 1, 3)
    """
    shape = layout.view_shape
    counts = kept.view(layout.views, -1).sum(dim=1).tolist()
    return replace(
        layout,
        segments=tuple(Segment(*shape if count == layout.patches_per_view else (1, count)) for count in counts),
        patches=tuple(kept.nonzero().flatten().tolist()),
        shapes=layout.view_shapes,
    )


def _grids(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Frames, rows and columns of patches of each picture or video."""
    return _listed(inputs, "image_grid_thw", "video_grid_thw")


def _sides(inputs: Mapping[str, Any]) -> list[int]:
    """The merge size of each picture or video."""
    return _listed(inputs, "image_merge_sizes", "video_merge_sizes")


def _listed(inputs: Mapping[str, Any], *names: str) -> list[Any]:
    found: list[Any] = next(inputs[name] for name in names if name in inputs).tolist()
    return found
