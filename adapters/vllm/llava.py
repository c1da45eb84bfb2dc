"""LLaVA-1.5 with a CLIP or SigLIP tower."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtprune.adapters.base import Vision
from vtprune.adapters.llava import LlavaAdapter
from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.model import PrunedModel
from vtprune.adapters.vllm.processing import PrunedInfo, PrunedProcessor
from vtprune.layout import ImageLayout, grid_layout
from vtprune.pruner import Depths, Signal

_TOWERS = ("clip_vision_model", "siglip_vision_model")

flat_towers = WeightsMapper(
    orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
)
"""Checkpoints of transformers 5 have the tower's parts one level higher than those before, as vLLM has them."""


def llava_abilities(config: Any, name: str = "VtpruneLlavaForConditionalGeneration") -> Abilities:
    """What the tower of a model of the LLaVA kind gives to look at.

    Raises:
        ValueError: Another tower than CLIP or SigLIP, or features of several layers.
    """
    vision = config.vision_config
    if vision.model_type not in _TOWERS:
        raise ValueError(f"{name} has a tower of type {vision.model_type!r}; supported are {' and '.join(_TOWERS)}")
    if not isinstance(config.vision_feature_layer, int):
        raise ValueError(
            f"vision_feature_layer={config.vision_feature_layer} feeds features of several layers to the projector; "
            "supported is one layer"
        )
    has_cls = vision.model_type == "clip_vision_model"
    wanted = "default" if has_cls else "full"
    if config.vision_feature_select_strategy != wanted:
        raise ValueError(
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} is not supported with "
            f"{vision.model_type}; it must be {wanted!r}"
        )
    missing = {} if has_cls else {Signal.ENCODER_CLS: f"the vision tower of {name} has no CLS token"}
    depths = Depths(int(config.get_text_config().num_hidden_layers), int(vision.num_hidden_layers))
    return Abilities(name, depths, missing)


@contextmanager
def whole_tower(config: Any) -> Iterator[None]:
    """In the meantime vLLM builds towers with the layers behind the features too, which some methods look at."""
    chosen = config.vision_feature_layer
    config.vision_feature_layer = -1
    try:
        yield
    finally:
        config.vision_feature_layer = chosen


@contextmanager
def run_until(encoder: Any, depth: int) -> Iterator[None]:
    """In the meantime an encoder ends after `depth` layers."""
    whole = encoder.layers
    encoder.layers = whole[:depth]
    try:
        yield
    finally:
        encoder.layers = whole


class AnySizeTower(nn.Module):
    """CLIP or SigLIP of vLLM, for pictures of any size; position embeddings are interpolated as transformers does it.

    Args:
        tower: As vLLM builds it, whole.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower.vision_model

    def forward(self, pixel_values: torch.Tensor, **settings: bool) -> Any:
        """All hidden states, under the name that transformers has for them; `settings` ask for what is done anyway."""
        tower: Any = self.tower
        embeddings = tower.embeddings
        states = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        kind: Any = SiglipVisionEmbeddings
        if hasattr(embeddings, "class_embedding"):
            kind = CLIPVisionEmbeddings
            states = torch.cat([embeddings.class_embedding.expand(len(states), 1, -1), states], dim=1)
        states = states + kind.interpolate_pos_encoding(embeddings, states, *pixel_values.shape[-2:])
        if hasattr(tower, "pre_layrnorm"):
            states = tower.pre_layrnorm(states)
        return SimpleNamespace(hidden_states=tower.encoder(inputs_embeds=states, return_all_hidden_states=True))


class LlavaTower:
    """Mixed into an adapter: the tower is vLLM's."""

    model: Any

    @cached_property
    def base(self) -> nn.Module:
        """The model's parts under their names, the tower able to take smaller pictures."""
        parts = nn.Module()
        parts.vision_tower = AnySizeTower(self.model.vision_tower)
        parts.multi_modal_projector = self.model.multi_modal_projector
        return parts

    @cached_property
    def vision(self) -> Vision:
        """The layers of CLIP or SigLIP as vLLM builds them, and vLLM's own attention in each."""
        return self.seen_through(self.model.multi_modal_projector)

    def seen_through(self, projector: nn.Module | None) -> Vision:
        """The tower, with a projector that maps each row of features to a token or without one."""
        config = self.model.config
        encoder: Any = self.model.vision_tower.vision_model.encoder
        layers = tuple(encoder.layers)
        chosen = config.vision_feature_layer
        # Index i of the hidden states is the output of layer i - 1; negative indices count from the last layer.
        feature = chosen - 1 if chosen >= 0 else len(layers) + chosen
        has_cls = config.vision_config.model_type == "clip_vision_model"
        return Vision(
            layers,
            tuple(layer.self_attn.attn for layer in layers),
            (feature,),
            projector,
            cls=0 if has_cls else None,
            prefix=int(has_cls),
        )


class ServedLlavaAdapter(LlavaTower, LlavaAdapter):
    """Shows the library where things are in vLLM's LLaVA."""


class LlavaTowerModel(PrunedModel):
    """Mixed into models whose tower is that of LLaVA."""

    hf_to_vllm_mapper: Any
    vision_tower: Any
    _looked_at: Sequence[int] = (0,)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        with whole_tower(vllm_config.model_config.hf_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix)

    def encode(self, kwargs: dict[str, Any], layers: Sequence[int]) -> Sequence[torch.Tensor]:
        """Lets the tower run as far as the features and the methods need it."""
        self._looked_at = (0, *layers)
        return super().encode(kwargs, layers)

    def _image_pixels_to_features(self, vision_tower: Any, pixel_values: Any) -> Any:
        feature = self.adapter.vision.features[0]
        depth = max(feature, *self._looked_at) + 1
        with run_until(vision_tower.vision_model.encoder, depth):
            return vision_tower(
                pixel_values,
                select_layers=None if depth == feature + 1 else [feature + 1],
                feature_select_strategy=self.config.vision_feature_select_strategy,
            )


class VtpruneLlavaInfo(PrunedInfo, LlavaProcessingInfo):
    """Every picture has the grid of the tower."""

    abilities_of = staticmethod(llava_abilities)

    def image_layout(self, items: Any, number: int, mm_kwargs: Mapping[str, object], data: Any) -> ImageLayout:
        """The grid of the tower."""
        side = int(self.get_vision_encoder_info().get_patch_grid_length())
        return grid_layout(side, side)


class VtpruneLlavaProcessor(PrunedProcessor, LlavaMultiModalProcessor):
    """LLaVA's processor with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(
    VtpruneLlavaProcessor, info=VtpruneLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class VtpruneLlavaForConditionalGeneration(LlavaTowerModel, LlavaForConditionalGeneration):
    """LLaVA-1.5 whose images keep the tokens that the chosen method keeps."""

    adapter_class = ServedLlavaAdapter
    abilities_of = staticmethod(llava_abilities)
    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | flat_towers

    def picture_tokens(self, kwargs: dict[str, Any], pictures: int) -> list[int]:
        """Every picture has the grid of the tower."""
        layout = self.adapter.typical_layout()
        assert layout is not None
        return [layout.tokens] * pictures
