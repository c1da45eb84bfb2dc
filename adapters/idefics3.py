"""Idefics3, SmolVLM and Granite Docling: tiles of one size with marks between them, patches merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from vtprune.adapters.base import Adapter, Vision, Word
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, grid_layout


@register_adapter
class Idefics3Adapter(Adapter):
    """`Idefics3ForConditionalGeneration`; a picture's last tile, the whole picture, has a mark of its own before it.

    Frames of videos are single tiles, and images of the prompt, with words between.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    borders: ClassVar[Word] = "before"

    @cached_property
    def vision(self) -> Vision:
        """Rows of the tower are the patches of real tiles in raster order, merged before they are projected."""
        layers, attentions = find_layers(self.base.get_submodule("vision_model"))
        return Vision(layers, attentions, (len(layers) - 1,), merge=self.merge)

    @property
    def merge(self) -> int:
        """Side of the square of patches that becomes one token."""
        config: Any = self.model.config
        return int(config.scale_factor)

    def merge_of(self, inputs: Mapping[str, Any]) -> int:
        """The same for what one call is given."""
        return self.merge

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A square for each real tile; the model returns those of a row of the batch together."""
        config: Any = self.model.config
        height, width = inputs["pixel_values"].shape[-2:]
        side = int(config.vision_config.patch_size) * self.merge_of(inputs)
        tile = grid_layout(height // side, width // side)
        return [tile] * (sum(counts) // tile.tokens)

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Averages squares of patches; all tiles are of one size."""
        side = self.merge_of(inputs)
        height, width = layouts[0].view_shape
        squares: torch.Tensor = rows.unflatten(0, (-1, height, side, width, side))
        return squares.mean(dim=(2, 4)).flatten(0, 2)

    def view_rows(self, layout: ImageLayout, inputs: Mapping[str, Any]) -> int:
        """Patches of a tile."""
        side = self.merge_of(inputs)
        return layout.patches_per_view * side * side

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The real tiles; those that rows are filled up with are zero, by which the model tells them too."""
        tiles = pixels.flatten(0, 1)
        real = tiles[(tiles != 0).flatten(1).any(dim=1)]
        # SmolVLM keeps one tile where all are zero.
        return real if len(real) == len(layouts) else tiles[: len(layouts)]
