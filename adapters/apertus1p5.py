"""Apertus 1.5: pictures become embedded codes of a convolutional tokenizer, in lines with marks between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, grid_layout


@register_adapter
class Apertus1p5Adapter(Adapter):
    """`Apertus1p5ForConditionalGeneration`; marks at line ends are text, and pictures keep their own sizes."""

    model_types = ("apertus1p5",)

    @cached_property
    def vision(self) -> Vision:
        """Nothing: codes have no rows of a tower, and no features but those that enter the decoder."""
        return Vision()

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A code for each square of pixels, in raster order."""
        return [grid_layout(height // self._factor, width // self._factor) for height, width in _sizes(inputs)]

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """Pictures are padded to the largest of the batch."""
        sizes = _sizes(inputs)
        return [picture[:, :height, :width] for picture, (height, width) in zip(pixels, sizes, strict=True)]

    @property
    def _factor(self) -> int:
        config: Any = self.model.config
        return int(config.vision_config.spatial_scale_factor)


def _sizes(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Height and width of each picture in pixels."""
    sizes: list[list[int]] = inputs["image_sizes"].tolist()
    return sizes
