"""Llama 4: tiles of a picture with marks between them, the whole picture last; one complex table turns the states."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers


@register_adapter
class Llama4Adapter(Adapter):
    """`Llama4ForConditionalGeneration`.

    Its layers without rotary scale queries by how many tokens are cached, in steps of `floor_scale` (8192); of prompts
    that are longer than that before pruning, they count the tokens that are left.
    """

    model_types = ("llama4",)
    borders = "after"

    @cached_property
    def vision(self) -> Vision:
        """The tower's last layer; CLS is the last row, and squares in raster order become one token."""
        tower: Any = self.base.get_submodule("vision_model")
        layers, attentions = find_layers(tower)
        side = round(1 / tower.config.pixel_shuffle_ratio)
        return Vision(layers, attentions, (len(layers) - 1,), cls=-1, merge=side)

    def without_rotation(self, position_embeddings: Any) -> Any:
        """Ones turn nothing."""
        return torch.ones_like(position_embeddings)
