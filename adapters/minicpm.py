"""MiniCPM-V 4.6, its successor and its OCR model: the whole picture first, then slices, each a grid of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Borders, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, grid_layout


@register_adapter
class MiniCPMAdapter(Adapter):
    """`MiniCPMV4_6ForConditionalGeneration` and kin; an entry of the features is a view of a picture or of a frame."""

    model_types = ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
    # Only the whole picture follows the mark that opens one; slices have a mark of their own.
    borders = "first"

    def borders_of(self, kind: str, inputs: Mapping[str, Any]) -> Borders:
        """Frames of a video each open like a picture, but nothing else stands between them."""
        return _videos if kind == "video" else self.borders

    @cached_property
    def vision(self) -> Vision:
        """The last layer counts, whose rows are patches, or squares of them after a merger inside the tower."""
        config: Any = self.model.config
        layers, attentions = find_layers(self.base.get_submodule("vision_tower.encoder"))
        merge = int(config.merge_kernel_size[0]) ** int(config.merger_times)
        return Vision(layers, attentions, (len(layers) - 1,), merge=merge)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A grid for each view; how many patches make a token depends on the mode of the call."""
        found = []
        for count, (height, width) in zip(counts, _sizes(inputs), strict=True):
            side = math.isqrt(height * width // count)
            found.append(grid_layout(height // side, width // side))
        return found

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Squares of rows in each view, which are smaller behind the merger inside the tower."""
        side = math.isqrt(rows.shape[0] // sum(layout.total_patches for layout in layouts))
        found = []
        for layout, own in zip(layouts, rows.split([size.total_patches * side**2 for size in layouts]), strict=True):
            height, width = layout.view_shape
            squares = own.view(height, side, width, side, *rows.shape[1:])
            found.append(squares.mean(dim=(1, 3)).flatten(0, 1))
        return torch.cat(found)

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> list[torch.Tensor]:
        """Patches of all views lie side by side in one line."""
        patch = int(pixels.shape[-2])
        return list(pixels.split([height * width * patch for height, width in _sizes(inputs)], dim=-1))


def _videos(line: Sequence[int], entries: Sequence[tuple[int, int]]) -> list[int]:
    """Views of each video: a frame begins another one where more stands before it than marks of an end and a begin."""
    counts = [1]
    for (_, last), (first, _) in pairwise(entries):
        opens = line[first - 1] == line[entries[0][0] - 1]
        if opens and first - last > 3:
            counts.append(1)
        else:
            counts[-1] += 1
    return counts


def _sizes(inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of patches of each view."""
    sizes = next(value for name, value in inputs.items() if name.startswith("target_sizes") and value is not None)
    return [(int(height), int(width)) for height, width in sizes.tolist()]
