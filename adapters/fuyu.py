"""Fuyu: patches of all pictures in one row, projected without a tower; lines of placeholders tell their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment, grid_layout


@register_adapter
class FuyuAdapter(Adapter):
    """`FuyuForCausalLM`; a word for a line's end, which is no feature, stands after each row of patches."""

    model_types = ("fuyu",)

    @cached_property
    def vision(self) -> Vision:
        """Nothing: patches are tokens as they come."""
        return Vision()

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """All patches in one row, until the prompt tells more."""
        (count,) = counts
        return [ImageLayout((Segment(1, count),), tuple(range(count)), views=1, patches_per_view=count)]

    def arrange(
        self, layouts: Sequence[ImageLayout], read: Callable[[], Sequence[Sequence[int]]]
    ) -> Sequence[ImageLayout]:
        """The pictures that the lines of placeholders draw."""
        return [grid_layout(*shape) for line in read() for shape in _shapes(line, self.image_token_id)]

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The patches of each picture."""
        return list(pixels.flatten(0, -2).split([layout.tokens for layout in layouts]))


def _shapes(line: Sequence[int], image: int) -> list[tuple[int, int]]:
    """Rows and columns of patches of each picture in a prompt: runs of one length with one token between them."""
    runs = [(found, len(list(run))) for found, run in groupby(token == image for token in line)]
    shapes: list[tuple[int, int]] = []
    gap = 0
    for placeholder, length in runs:
        if not placeholder:
            gap = length
        elif shapes and gap == 1 and shapes[-1][1] == length:
            shapes[-1] = shapes[-1][0] + 1, length
        else:
            shapes.append((1, length))
    return shapes
