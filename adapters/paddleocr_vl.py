"""PaddleOCR-VL: a tower that works in raster order; only its projector gathers squares of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout


@register_adapter
class PaddleOCRVLAdapter(Adapter):
    """`PaddleOCRVLForConditionalGeneration`."""

    model_types = ("paddleocr_vl",)

    @cached_property
    def vision(self) -> Vision:
        """Patches in raster order."""
        return replace(super().vision, blocks=False)

    def pictures(self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """A row of pixels for each patch, which come as `(patches, channels, side, side)`."""
        return pixels.flatten(1)
