"""Gemma 3 and ShieldGemma 2: the whole picture and crops of it (pan and scan), each pooled to one grid of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, join_layouts

_WORDS = 10
"""In the sentence that the processor writes between a picture and its crops."""


@register_adapter
class Gemma3Adapter(Adapter):
    """`Gemma3ForConditionalGeneration`; the projector pools squares of patches before it projects."""

    model_types = ("gemma3", "shieldgemma2")

    @cached_property
    def vision(self) -> Vision:
        """The tower's last layer, pooled in squares in raster order."""
        layers, attentions = find_layers(self.base.get_submodule("vision_tower"))
        projector: Any = self.base.get_submodule("multi_modal_projector")
        return Vision(layers, attentions, (len(layers) - 1,), merge=int(projector.kernel_size))

    def arrange(
        self, layouts: Sequence[ImageLayout], read: Callable[[], Sequence[Sequence[int]]]
    ) -> Sequence[ImageLayout]:
        """Joins crops with their picture: the model is not told how many there are, the prompt's words tell."""
        if len(layouts) == 1:
            return layouts
        found, start = [], 0
        for line in read():
            for size in _picture_sizes(line, self.image_token_id, layouts[0].tokens):
                found.append(join_layouts(tuple(layouts[start : start + size])))
                start += size
        return found

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The whole picture and the crops of each."""
        return list(pixels.split([layout.views for layout in layouts]))


def _picture_sizes(line: Sequence[int], image: int, tokens: int) -> list[int]:
    """How many blocks of placeholders each picture of a prompt has.

    Around each block stand a mark and an empty line. Crops have a single space between them, and stand behind the
    whole picture and a sentence that ends with that space.
    """
    columns = [column for column, token in enumerate(line) if token == image]
    # What lies between two blocks without the marks and lines, which are two tokens at both ends.
    between = [list(line[last + 3 : first - 2]) for last, first in pairwise(columns) if first != last + 1]
    blocks = len(columns) // tokens
    if len(between) != blocks - 1:
        return [1] * blocks
    sizes, block = [], 0
    while block < blocks:
        end = block
        if block + 1 < len(between) and len(between[block]) > _WORDS:
            space = between[block][-1:]
            while end < len(between) and (end == block or between[end] == space):
                end += 1
            # A sentence alone is text between two pictures.
            end = end if end > block + 1 else block
        sizes.append(end - block + 1)
        block = end + 1
    return sizes
