"""LLaVA-NeXT-Video: pictures as LLaVA-NeXT has them, and frames of videos whose patches are pooled in squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vtprune.adapters.base import Adapter
from vtprune.adapters.llava_next import LlavaNextAdapter
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, video_layout

_FRAMES = "pixel_values_videos"


@register_adapter
class LlavaNextVideoAdapter(LlavaNextAdapter):
    """`LlavaNextVideoForConditionalGeneration`; its frames are pooled before they are projected."""

    model_types = ("llava_next_video",)

    # A smaller picture stands for a picture, not for a video, and both kinds come with several views.
    encode_smaller = Adapter.encode_smaller

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A video has a view for each frame, and no newline tokens."""
        if kind != "video":
            return super().layouts(kind, counts, inputs)
        videos, frames, _, height, width = inputs[_FRAMES].shape
        pixels = self._patch_size() * self._stride
        return [video_layout(frames, height // pixels, width // pixels)] * videos

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Patches of frames are averaged as the pooling layer takes them together."""
        if _FRAMES not in inputs:
            return rows
        height, width = (side // self._patch_size() for side in inputs[_FRAMES].shape[-2:])
        stride = self._stride
        # The pooling layer leaves out what fills no square.
        grid = rows.view(-1, height, width, *rows.shape[1:])[:, : height // stride * stride, : width // stride * stride]
        squares = grid.unflatten(2, (-1, stride)).unflatten(1, (-1, stride))
        patches: torch.Tensor = squares.mean(dim=(2, 4)).flatten(0, 2)
        return patches

    def view_rows(self, layout: ImageLayout, inputs: Mapping[str, Any]) -> int:
        """Frames have more rows than tokens."""
        if _FRAMES not in inputs:
            return super().view_rows(layout, inputs)
        height, width = (side // self._patch_size() for side in inputs[_FRAMES].shape[-2:])
        return int(height * width) + int(self.vision.has_cls)

    @property
    def _stride(self) -> int:
        config: Any = self.model.config
        return int(config.spatial_pool_stride)
