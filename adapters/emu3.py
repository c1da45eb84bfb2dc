"""Emu3: a picture becomes rows of codes of a VQ-VAE, words of the vocabulary, each row closed by a line end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vtprune.adapters.base import Adapter
from vtprune.adapters.hy_v4_vl import lined_layout
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout


@register_adapter
class Emu3Adapter(Adapter):
    """`Emu3ForConditionalGeneration`."""

    model_types = ("emu3",)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A code for each square of pixels of the picture without padding, and a line end after each row."""
        side = self._side
        return [lined_layout(1, height // side, width // side) for height, width in _sizes(inputs)]

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> list[torch.Tensor]:
        """Each picture without the padding to the largest of the batch."""
        return [picture[:, :height, :width] for picture, (height, width) in zip(pixels, _sizes(inputs), strict=True)]

    @property
    def _side(self) -> int:
        tower: Any = self.base.get_submodule("vqmodel")
        return int(tower.vision_spatial_factor)


def _sizes(inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    sizes = inputs["image_sizes"]
    return [(int(height), int(width)) for height, width in (sizes.tolist() if hasattr(sizes, "tolist") else sizes)]
