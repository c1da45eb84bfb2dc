"""Granite Docling: Idefics3's tiles, of either of two numbers of tokens; tower features are added between layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vtprune.adapters.idefics3 import Idefics3Adapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class GraniteDoclingAdapter(Idefics3Adapter):
    """`GraniteDoclingForConditionalGeneration`; a picture's first tile has a mark of its own, the last one only if
    there are several."""

    model_types = ("granite_docling",)
    borders = "first"

    @property
    def merge(self) -> int:
        """Side of the square on the connector's coarse path."""
        config: Any = self.model.config
        return int(config.vision_config.scale_factor)

    def merge_of(self, inputs: Mapping[str, Any]) -> int:
        """Half of it on the fine path, which `tile_fine_mask` chooses by being there."""
        return self.merge if inputs.get("tile_fine_mask") is None else self.merge // 2

    def entering(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """The decoder scales what it is given."""
        decoder: Any = self.decoder
        states: torch.Tensor = super().entering(arguments) * decoder.embedding_multiplier
        return states
