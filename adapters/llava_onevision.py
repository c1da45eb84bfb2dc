"""LLaVA-OneVision: canvases of crops, interpolated where too large; pictures of one view each; pooled frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.llava import chosen_layers
from vtprune.adapters.llava_next import anyres_layouts
from vtprune.adapters.registry import register_adapter
from vtprune.engine.vision import grids_on, patch_numbers
from vtprune.layout import ImageLayout, Segment

_FRAMES = "pixel_values_videos"


@register_adapter
class LlavaOnevisionAdapter(Adapter):
    """`LlavaOnevisionForConditionalGeneration`; view 0 of a lone picture is the thumbnail, crops follow in raster.

    Interpolation makes a token of a fractional number of patches. Such a token is said to lie at the patch around its
    centre, and signals of that patch are interpolated as the model interpolates features.
    """

    model_types = ("llava_onevision",)

    @cached_property
    def vision(self) -> Vision:
        """The tower; without a projector to go through, as tokens are interpolated from features after it."""
        return chosen_layers(self.model.config, self.base.get_submodule("vision_tower"))

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Views and unpadding follow from original sizes; pictures that share a prompt have one view each."""
        if kind == "video":
            videos, frames = (int(size) for size in inputs[_FRAMES].shape[:2])
            layout = pooled_layout(frames, math.ceil(self._side / 2))
            # Releases up to 5.17 put the newline token in after the features are made.
            plain = sum(counts) == videos * (layout.tokens - 1)
            return [without_newline(layout) if plain else layout] * videos
        limit = self._limit(inputs)
        return [interpolated_layout(layout, self._side, limit) for layout in self._canvases(inputs)]

    def filled_in(
        self, kind: str, layouts: Sequence[ImageLayout], arguments: Mapping[str, Any]
    ) -> Sequence[ImageLayout]:
        """Videos end with a newline token, which may not have been among the features."""
        if kind != "video":
            return layouts
        return [
            layout if layout.has_separators else pooled_layout(layout.views, layout.view_shape[0]) for layout in layouts
        ]

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Interpolates as the model does: frames of videos, and canvases that are too large."""
        if _FRAMES in inputs:
            half = math.ceil(self._side / 2)
            frames = rows.view(-1, self._side, self._side, *rows.shape[1:])
            return _interpolated(frames, half, half).flatten(0, 2)
        canvases = self._canvases(inputs)
        parts = rows.split([layout.total_patches for layout in layouts])
        found = [
            part if before.tokens == after.tokens else _interpolated_canvas(part, before, after)
            for part, before, after in zip(parts, canvases, layouts, strict=True)
        ]
        return torch.cat(found)

    def view_rows(self, layout: ImageLayout, inputs: Mapping[str, Any]) -> int:
        """Frames of videos have more rows than tokens."""
        return self._side**2 + int(self.vision.has_cls)

    def _canvases(self, inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """The layouts before interpolation; of pictures that share a prompt only one view was made."""
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise ValueError(
                f"{type(self.model).__name__} needs image_sizes beside pixel_values; pass all that the processor "
                "returned"
            )
        layouts = anyres_layouts(self.model.config, sizes)
        together = inputs.get("batch_num_images")
        if together is None:
            return layouts
        counts = together.tolist() if isinstance(together, torch.Tensor) else together
        alone = [count == 1 for count in counts for _ in range(count)]
        view = single_layout(self._side)
        return [layout if lone else view for layout, lone in zip(layouts, alone, strict=True)]

    @property
    def _side(self) -> int:
        config: Any = self.model.config
        return int(config.vision_config.image_size) // int(config.vision_config.patch_size)

    def _limit(self, inputs: Mapping[str, Any]) -> int:
        """How many views' worth of tokens a canvas may have."""
        config: Any = self.model.config
        return int((inputs.get("vision_aspect_ratio") or config.vision_aspect_ratio).removeprefix("anyres_max_"))


@lru_cache(maxsize=1024)
def single_layout(side: int) -> ImageLayout:
    """One view of `side x side` patches and a newline token."""
    return _closed((Segment(side, side),), side * side, 1)


@lru_cache(maxsize=1024)
def pooled_layout(frames: int, side: int) -> ImageLayout:
    """A view for each frame, of `side x side` tokens, and one newline token at the end."""
    return _closed((Segment(side, side),) * frames, side * side, frames)


def without_newline(layout: ImageLayout) -> ImageLayout:
    """The same without its last token."""
    return replace(layout, segments=layout.segments[:-1], patches=layout.patches[:-1])


@lru_cache(maxsize=1024)
def interpolated_layout(layout: ImageLayout, side: int, limit: int) -> ImageLayout:
    """The layout of an anyres picture whose canvas is interpolated where it is larger than `limit` views.

    Example:
        >>> from vtprune.adapters.llava_next import anyres_layout
        >>> interpolated_layout(anyres_layout((56, 56), ((64, 64),), 32, 4), 4, 3).segments[1]
        Segment(height=6, width=6, newline=True)
    """
    if len(layout.segments) < 2 or layout.segments[1].width == 0:
        return layout
    canvas = torch.tensor(layout.patches)[layout.grids[1]]
    lines, columns = canvas.shape
    ratio = math.sqrt(lines * columns / (limit * side * side))
    if ratio <= 1.1:
        return layout
    height, width = int(lines // ratio), int(columns // ratio)
    near = canvas[_centres(height, lines)][:, _centres(width, columns)]
    newline = torch.full((height, 1), -1)
    patches = (*layout.patches[: side * side], *torch.cat([near, newline], dim=1).flatten().tolist())
    segments = (layout.segments[0], Segment(height, width, newline=True))
    return replace(layout, segments=segments, patches=patches)


def _closed(segments: tuple[Segment, ...], patches: int, views: int) -> ImageLayout:
    closed = (*segments, Segment(1, 0, newline=True))
    return ImageLayout(closed, (*range(patches * views), -1), views=views, patches_per_view=patches)


def _centres(size: int, full: int) -> torch.Tensor:
    """Of `full` patches in a row those around the centres of `size` equal parts."""
    return (2 * torch.arange(size) + 1) * full // (2 * size)


def _interpolated_canvas(rows: torch.Tensor, before: ImageLayout, after: ImageLayout) -> torch.Tensor:
    """Rows of one picture `(patches, ...)`, at the patches of its tokens what the model's interpolation gives these."""
    here, there = (patch_numbers(layout, rows.device)[grids_on(layout, rows.device)[1]] for layout in (before, after))
    values = _interpolated(rows[here].unsqueeze(0), *there.shape)
    return rows.index_copy(0, there.flatten(), values.flatten(0, 2))


def _interpolated(grids: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Grids `(grids, rows, columns, ...)` in another size."""
    flat = grids.flatten(3) if grids.dim() > 3 else grids.unsqueeze(-1)
    small = nn.functional.interpolate(flat.permute(0, 3, 1, 2), (height, width), mode="bilinear")
    return small.permute(0, 2, 3, 1).reshape(-1, height, width, *grids.shape[3:])
