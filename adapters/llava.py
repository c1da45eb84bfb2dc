"""LLaVA-1.5 and its kin: one view a picture, a plain grid of patches, features of one or several encoder layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, grid_layout
from vtprune.pruner import Signal


@register_adapter
class LlavaAdapter(Adapter):
    """`LlavaForConditionalGeneration` with a CLIP-like or SigLIP-like tower; VipLLaVA with several of its layers."""

    model_types: ClassVar[tuple[str, ...]] = ("llava", "vipllava")

    @cached_property
    def vision(self) -> Vision:
        """The tower's layers as `hidden_states[vision_feature_layer]` counts them: entry 0 is the embedding."""
        projector = self.base.get_submodule("multi_modal_projector")
        return replace(chosen_layers(self.model.config, self.base.get_submodule("vision_tower")), projector=projector)

    @cached_property
    def missing(self) -> dict[Signal, str]:
        """Besides what towers lack: CLIP's text meets the features of one layer only."""
        gone = dict(super().missing)
        if len(self.vision.features) > 1:
            name = type(self.model).__name__
            gone[Signal.CLIP_TEXT] = (
                f"{name} projects features of several layers at once, which CLIP's text does not meet"
            )
        return gone

    def encode_smaller(self, pixel_values: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Shrinks by bicubic interpolation with anti-aliasing, and interpolates the tower's position embeddings."""
        config: Any = self.model.config
        pictures = pixel_values[:, 0] if pixel_values.dim() == 5 else pixel_values
        patch = self._patch_size()
        small = nn.functional.interpolate(
            pictures.float(), (height * patch, width * patch), mode="bicubic", antialias=True, align_corners=False
        )
        tower: Any = self.base.get_submodule("vision_tower")
        states = tower(
            small.to(next(tower.parameters()).dtype), output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states
        chosen = config.vision_feature_layer
        layers = [chosen] if isinstance(chosen, int) else list(chosen)
        features = [states[layer][:, int(self.vision.has_cls) :] for layer in layers]
        projector: Any = self.base.get_submodule("multi_modal_projector")
        # `forward` and not the module itself: the picture in full size was recorded by its hooks.
        projected: torch.Tensor = projector.forward(torch.cat(features, dim=-1))
        return projected

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """One view an image; the grid follows from the picture's size and the patch size."""
        pixels = inputs["pixel_values"]
        if pixels.dim() != 4:
            raise ValueError(f"pixel_values must be (images, channels, height, width), got {tuple(pixels.shape)}")
        patch = self._patch_size()
        return [grid_layout(pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * pixels.shape[0]

    def typical_layout(self) -> ImageLayout | None:
        """The grid at the tower's own resolution."""
        config: Any = self.model.config
        side = int(config.vision_config.image_size) // self._patch_size()
        return grid_layout(side, side)

    def _patch_size(self) -> int:
        config: Any = self.model.config
        return int(config.vision_config.patch_size)


def chosen_layers(config: Any, tower: nn.Module, chosen: int | Sequence[int] | None = None) -> Vision:
    """A tower of which the model takes some of its `hidden_states`, without a CLS token where it has one.

    Args:
        config: The model's configuration.
        tower: Its vision tower.
        chosen: Index or indices of the hidden states; those of the configuration unless given.

    Raises:
        ValueError: There are no such layers, or the model does with a CLS token what is not supported.
    """
    layers, attentions = find_layers(tower)
    if not layers:
        raise ValueError(f"vision tower {type(tower).__name__} has no list of layers with attention")
    if chosen is None:
        chosen = getattr(config, "vision_feature_layer", None)
    if chosen is None:
        chosen = config.vision_feature_layers
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    # Index i of the hidden states is the output of layer i - 1; negative indices count from the last layer.
    numbers = tuple(index - 1 if index >= 0 else len(layers) + index for index in indices)
    if any(not 0 <= number < len(layers) for number in numbers):
        raise ValueError(f"vision_feature_layer={chosen} names no encoder layer; the tower has {len(layers)}")
    has_cls = any(name.endswith("class_embedding") for name, _ in tower.named_parameters())
    # A family without the setting always drops the first row.
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    if has_cls and strategy != "default":
        raise ValueError(
            f"vision_feature_select_strategy={strategy!r} feeds the CLS token to the decoder as a visual token; "
            "only 'default' is supported for towers with a CLS token"
        )
    if not has_cls and strategy == "default":
        raise ValueError("vision_feature_select_strategy='default' drops a patch of a tower without CLS; use 'full'")
    return Vision(layers, attentions, numbers, cls=0 if has_cls else None, prefix=int(has_cls))
