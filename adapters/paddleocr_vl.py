"""PaddleOCR-VL: a tower that works in raster order; only its projector gathers squares of patches."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from vtprune.adapters.base import Adapter, Vision, register_adapter


@register_adapter
class PaddleOCRVLAdapter(Adapter):
    """`PaddleOCRVLForConditionalGeneration`."""

    model_types = ("paddleocr_vl",)

    @cached_property
    def vision(self) -> Vision:
        """Patches in raster order."""
        return replace(super().vision, blocks=False)
