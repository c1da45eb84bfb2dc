"""InternVL in the format of transformers: tiles of one size with a thumbnail behind them; videos pass unpruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtprune.adapters.base import Vision
from vtprune.adapters.internvl import InternVLAdapter
from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.model import PrunedModel
from vtprune.adapters.vllm.processing import PrunedInfo, PrunedProcessor
from vtprune.layout import ImageLayout, join_layouts, square_layout
from vtprune.pruner import Depths, Signal

_ARCHITECTURE = "VtpruneInternVLForConditionalGeneration"


def abilities(config: Any) -> Abilities:
    """What its tower gives to look at.

    Raises:
        ValueError: Features of another layer than the last one, which vLLM does not take either.
    """
    vision = config.vision_config
    depth = int(vision.num_hidden_layers)
    if config.vision_feature_layer not in (-1, depth) or config.vision_feature_select_strategy != "default":
        raise ValueError(
            f"vision_feature_layer={config.vision_feature_layer} and vision_feature_select_strategy="
            f"{config.vision_feature_select_strategy!r} are not supported; they must be -1 and 'default'"
        )
    missing = {
        Signal.ENCODER_CLS: f"{_ARCHITECTURE} merges patches, and a CLS token has none to merge with",
        Signal.PIXELS: f"the vision tower of {_ARCHITECTURE} is not known to take smaller pictures",
    }
    return Abilities(_ARCHITECTURE, Depths(int(config.get_text_config().num_hidden_layers), depth), missing)


class ServedInternVLAdapter(InternVLAdapter):
    """Shows the library where things are in vLLM's InternVL."""

    @property
    def base(self) -> nn.Module:
        """The model itself."""
        return self.model

    @cached_property
    def vision(self) -> Vision:
        """The layers as vLLM builds them, and its own attention in each; row 0 is CLS."""
        model: Any = self.model
        layers = tuple(model.vision_tower.encoder.layer)
        attentions = tuple(layer.attention.attn for layer in layers)
        merge = round(1 / model.config.downsample_ratio)
        return Vision(layers, attentions, (len(layers) - 1,), cls=0, prefix=1, merge=merge)


class VtpruneInternVLInfo(PrunedInfo, InternS1ProcessingInfo):
    """Tiles follow from the processor."""

    abilities_of = staticmethod(abilities)

    def get_max_video_tokens(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """Of as many frames as vLLM's dummy videos have."""
        frames: int = self.get_num_frames_with_most_features(seq_len, mm_counts)
        return frames * int(self.get_hf_processor().image_seq_length)

    def image_layout(self, items: Any, number: int, mm_kwargs: Mapping[str, object], data: Any) -> ImageLayout:
        """A square for each tile."""
        tiles = int(data["image"][number]["image_num_patches"].data)
        return join_layouts((square_layout(int(self.get_hf_processor().image_seq_length)),) * tiles)


class VtpruneInternVLProcessor(PrunedProcessor, InternS1MultiModalProcessor):
    """InternVL's processor with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(
    VtpruneInternVLProcessor, info=VtpruneInternVLInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class VtpruneInternVLForConditionalGeneration(PrunedModel, InternS1ForConditionalGeneration):
    """InternVL whose images keep the tokens that the chosen method keeps."""

    num_image_token: int
    adapter_class = ServedInternVLAdapter
    abilities_of = staticmethod(abilities)

    def picture_tokens(self, kwargs: dict[str, Any], pictures: int) -> list[int]:
        """Equally many for each tile."""
        return [int(tiles) * self.num_image_token for tiles in kwargs["image_num_patches"]]

    def pictures(self, kwargs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some pictures' tiles."""
        tiles = [int(count) for count in kwargs["image_num_patches"]]
        first, last = sum(tiles[:start]), sum(tiles[:end])
        part = {"pixel_values": kwargs["pixel_values"][first:last]}
        return {**kwargs, **part, "image_num_patches": kwargs["image_num_patches"][start:end]}

    def entry_tokens(self, kwargs: dict[str, Any], features: Sequence[torch.Tensor]) -> list[list[int]]:
        """Each tile is an entry."""
        return [[self.num_image_token] * int(tiles) for tiles in kwargs["image_num_patches"]]
