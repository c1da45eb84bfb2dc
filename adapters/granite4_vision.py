"""Granite 4 Vision: LLaVA-NeXT's views, of which several layers' features are added before several decoder layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.llava import chosen_layers
from vtprune.adapters.llava_next import anyres_layouts
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout


@register_adapter
class Granite4VisionAdapter(Adapter):
    """`Granite4VisionForConditionalGeneration`; a visual token begins as nothing, until its first features come."""

    model_types = ("granite4_vision",)

    @cached_property
    def vision(self) -> Vision:
        """The tower; a token is made in the place of a square of patches, with a look at the window around it."""
        config: Any = self.model.config
        chosen = [*(layer for layer, _ in config.deepstack_layer_map), config.spatial_vision_layer]
        seen = chosen_layers(config, self.base.get_submodule("vision_tower"), chosen)
        numbers = tuple(sorted(set(seen.features)))
        return replace(seen, features=numbers, merge=int(1 / Fraction(config.downsample_rate)))

    def feature_counts(self, output: Any) -> list[int]:
        """Tokens of each picture, of which there are features for each of several decoder layers."""
        _, features = output.deepstack_features[0]
        return [int(part.shape[0]) for part in features]

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Views and unpadding follow from the original sizes."""
        return anyres_layouts(self.model.config, inputs["image_sizes"], self.vision.merge)

    def injections(self, arguments: dict[str, Any]) -> dict[int, torch.Tensor]:
        """All features: they come before the layers that the configuration names."""
        features = arguments.get("deepstack_features")
        arguments["deepstack_features"] = None
        return dict(features or {})

    def entering(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Scaled embeddings, with the first features in the places where they will be added to nothing."""
        decoder: Any = self.decoder
        states: torch.Tensor = arguments["inputs_embeds"] * decoder.embedding_multiplier
        features = arguments.get("deepstack_features")
        if not features:
            return states
        first = features[min(features)].to(states.device, states.dtype)
        return states.masked_scatter(arguments["vision_mask"].to(states.device), first)
