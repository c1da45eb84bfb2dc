"""Aya Vision and Command A Vision: tiles with marks between them and a thumbnail last, four patches to a token."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from vtprune.adapters.base import Adapter, Vision, Word
from vtprune.adapters.llava import chosen_layers
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers


@register_adapter
class AyaVisionAdapter(Adapter):
    """`AyaVisionForConditionalGeneration`; only behind a picture's last view stands the mark that ends it."""

    model_types = ("aya_vision",)
    borders: ClassVar[Word] = "after"

    @cached_property
    def vision(self) -> Vision:
        """The tower in raster order; squares of its patches are put side by side before they are projected."""
        tower = self.base.get_submodule("vision_tower")
        return replace(chosen_layers(self.model.config, tower), merge=self._merge)

    @property
    def _merge(self) -> int:
        config: Any = self.model.config
        return int(config.downsample_factor)


@register_adapter
class Cohere2VisionAdapter(AyaVisionAdapter):
    """`Cohere2VisionForConditionalGeneration`; all views end alike, but the first follows the mark that begins it."""

    model_types = ("cohere2_vision",)
    borders = "first"

    @cached_property
    def vision(self) -> Vision:
        """The tower's last states feed the projector."""
        layers, attentions = find_layers(self.base.get_submodule("vision_tower"))
        return Vision(layers, attentions, (len(layers) - 1,), merge=self._merge)
