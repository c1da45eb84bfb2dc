"""Ovis2: a thumbnail, then tiles with marks between them; each token is a mixture of visual words."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers


@register_adapter
class Ovis2Adapter(Adapter):
    """`Ovis2ForConditionalGeneration`; view 0 is the thumbnail, the tiles follow in raster order."""

    model_types = ("ovis2",)
    # Only the thumbnail follows the mark that opens a picture; a picture of one tile closes otherwise than others.
    borders = "first"

    @cached_property
    def vision(self) -> Vision:
        """Squares of patches are joined behind the last layer, before the head that chooses visual words."""
        tower: Any = self.base.get_submodule("vision_tower")
        layers, attentions = find_layers(tower)
        merge = int(tower.config.hidden_stride)
        # The head's output is not yet the token, which the table of visual words makes of it.
        return Vision(layers, attentions, (len(layers) - 1,), merge=merge)
