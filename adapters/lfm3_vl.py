"""LFM3-VL: a tower of convolutions and attention over patches of native shape, merged in squares."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.decoders import find_attention
from vtprune.adapters.registry import register_adapter


@register_adapter
class Lfm3VlAdapter(Adapter):
    """`Lfm3VlForConditionalGeneration`; pairs of video frames are views of a video."""

    model_types = ("lfm3_vl",)

    @cached_property
    def vision(self) -> Vision:
        """The tower's layers with attention: the others are convolutions, behind the last one of which features count.

        Raises:
            ValueError: No layer has attention.
        """
        tower: Any = self.base.get_submodule("vision_tower")
        found = [(layer, find_attention(layer, number)) for number, layer in enumerate(tower.layers)]
        pairs = [(layer, attention) for layer, attention in found if attention is not None]
        if not pairs:
            raise ValueError(f"no layer of {type(tower).__name__} has attention")
        layers, attentions = zip(*pairs, strict=True)
        return Vision(layers, attentions, (len(layers) - 1,), merge=int(tower.spatial_merge_size), blocks=True)
