"""Perception LM: a thumbnail and its tiles, or frames, all in one run of placeholders; a timm tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from vtprune.adapters.base import Adapter, Borders, Placeholder
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, join_layouts, square_layout


@register_adapter
class PerceptionLMAdapter(Adapter):
    """`PerceptionLMForConditionalGeneration`, which encodes videos with the method for images."""

    model_types = ("perception_lm",)

    @cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Pictures and videos."""
        config: Any = self.model.config
        return (
            Placeholder("image", int(config.image_token_id), "get_image_features"),
            Placeholder("video", int(config.video_token_id), "get_image_features"),
        )

    def borders_of(self, kind: str, inputs: Mapping[str, Any]) -> Borders:
        """Runs of placeholders, where all tiles or frames come as one item because their numbers differ."""
        return "run" if inputs["pixel_values"].shape[0] == 1 else "feature"

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """An entry for each item, `(items, tiles, channels, height, width)`; for each tile where only runs tell."""
        items, tiles = inputs["pixel_values"].shape[:2]
        views = [square_layout(count) for count in counts]
        if self.borders_of(kind, inputs) == "run":
            return views
        return [join_layouts(tuple(views[item * tiles : (item + 1) * tiles])) for item in range(items)]
