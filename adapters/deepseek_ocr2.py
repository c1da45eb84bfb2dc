"""DeepSeek-OCR 2: learnt queries of each tile, then those of the whole picture, then one separator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment
from vtprune.pruner import Signal


@register_adapter
class DeepseekOcr2Adapter(Adapter):
    """`DeepseekOcr2ForConditionalGeneration`; tokens are outputs at queries and have no place in the picture."""

    model_types = ("deepseek_ocr2",)

    @cached_property
    def vision(self) -> Vision:
        """Not seen through: a token is a query that attends to all patches of its view."""
        return Vision()

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """How many queries a view has follows from its size."""
        whole = self._queries(inputs["pixel_values"])
        local = inputs.get("pixel_values_local")
        tile = whole if local is None else self._queries(local)
        return [queries_layout((count - 1 - whole) // tile, tile, whole) for count in counts]

    def _queries(self, pixels: torch.Tensor) -> int:
        """Queries of a view of these pixels: the smaller set where there are no more patches than that."""
        vision: Any = self.base.get_submodule("vision_tower")
        sam = vision.config.sam_config
        # Two strided convolutions make one of 4 x 4 patches.
        side = int(pixels.shape[-1]) // int(sam.patch_size) // 4
        small, large = vision.query_768_resolution.num_embeddings, vision.query_1024_resolution.num_embeddings
        return int(small if side * side <= small else large)

    @cached_property
    def missing(self) -> dict[Signal, str]:
        """No signal of single patches."""
        reason = f"each token of {type(self.model).__name__} is a learnt query that attends to all patches of a view"
        gone = dict.fromkeys((Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_LAYERS), reason)
        return super().missing | gone


@lru_cache(maxsize=1024)
def queries_layout(tiles: int, tile: int, whole: int) -> ImageLayout:
    """A row of `tile` queries for each of some tiles, then a row of `whole` ones and a separator.

    Example:
        >>> queries_layout(2, 144, 256).tokens
        545
    """
    segments = (*[Segment(1, tile)] * tiles, Segment(1, whole), Segment(1, 0, newline=True))
    patches = (*range(tiles * tile + whole), -1)
    shapes = (*[(1, tile)] * tiles, (1, whole))
    return ImageLayout(segments, patches, views=tiles + 1, patches_per_view=max(tile, whole), shapes=shapes)
