"""Models around a Pixtral tower: pictures of any size, packed in raster order, patches merged by the projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, grid_layout


@register_adapter
class PixtralAdapter(Adapter):
    """`Mistral3ForConditionalGeneration` and `LightOnOcrForConditionalGeneration`.

    Marks between the lines of a picture are text of the prompt, not visual tokens.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mistral3", "lighton_ocr")

    @cached_property
    def vision(self) -> Vision:
        """The tower's layers as `hidden_states[vision_feature_layer]` counts them: entry 0 is the embedding."""
        found = super().vision
        config: Any = self.model.config
        chosen = getattr(config, "vision_feature_layer", -1)
        depth = len(found.layers)
        numbers = tuple(
            index - 1 if index >= 0 else depth + index for index in ([chosen] if isinstance(chosen, int) else chosen)
        )
        if any(not 0 <= number < depth for number in numbers):
            raise ValueError(f"vision_feature_layer={chosen} names no encoder layer; the tower has {depth}")
        # The projector wants the pictures' sizes too: it is no map of single rows, even where it merges nothing.
        return replace(found, features=numbers, projector=None, blocks=False)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Grids that follow from the pictures' sizes without padding."""
        sizes = inputs["image_sizes"]
        cell = self._cell
        return [
            grid_layout(int(height) // cell, int(width) // cell)
            for height, width in (sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes)
        ]

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> list[torch.Tensor]:
        """Each picture without the padding to the largest of the batch."""
        cell = self._cell
        shapes = [layout.view_shape for layout in layouts]
        return [
            picture[:, : height * cell, : width * cell] for picture, (height, width) in zip(pixels, shapes, strict=True)
        ]

    @property
    def _cell(self) -> int:
        """Side in pixels of what becomes one token."""
        config: Any = self.model.config
        return int(config.vision_config.patch_size) * int(config.spatial_merge_size)
