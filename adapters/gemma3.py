"""Gemma 3 and ShieldGemma 2: the whole picture and crops of it (pan and scan), each pooled to one grid of tokens."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vtprune.adapters.base import Adapter, Vision, register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, grid_layout


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
