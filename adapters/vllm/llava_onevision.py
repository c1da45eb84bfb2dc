"""LLaVA-OneVision: crops as in LLaVA-NeXT, interpolated where they are many; videos pass unpruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtprune.adapters.base import Vision
from vtprune.adapters.llava_next import anyres_layouts
from vtprune.adapters.llava_onevision import LlavaOnevisionAdapter, interpolated_layout
from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.llava import LlavaTower, flat_towers, llava_abilities
from vtprune.adapters.vllm.llava_next import AnyresModel
from vtprune.adapters.vllm.processing import PrunedInfo, PrunedProcessor
from vtprune.layout import ImageLayout
from vtprune.pruner import Signal

_ARCHITECTURE = "VtpruneLlavaOnevisionForConditionalGeneration"
_VIEWS = 9
"""How many views' worth of tokens vLLM lets a canvas have, whatever the configuration says."""


def abilities(config: Any) -> Abilities:
    """Those of its tower, but tokens that are interpolated have no features of their own before the projector."""
    found = llava_abilities(config, _ARCHITECTURE)
    reason = f"the vision tower of {_ARCHITECTURE} is not known to take smaller pictures"
    return replace(found, missing={**found.missing, Signal.PIXELS: reason})


class ServedLlavaOnevisionAdapter(LlavaTower, LlavaOnevisionAdapter):
    """Shows the library where things are in vLLM's LLaVA-OneVision."""

    @cached_property
    def vision(self) -> Vision:
        """Without a projector to go through, as tokens are interpolated from features after it."""
        return self.seen_through(None)


class VtpruneLlavaOnevisionInfo(PrunedInfo, LlavaOnevisionProcessingInfo):
    """Views, unpadding and interpolation follow from the size of the picture."""

    abilities_of = staticmethod(abilities)

    def image_layout(self, items: Any, number: int, mm_kwargs: Mapping[str, object], data: Any) -> ImageLayout:
        """The canvas that fits the picture best, interpolated where it is too large."""
        config: Any = self.get_hf_config()
        size = items.get_image_size(number)
        side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
        return interpolated_layout(anyres_layouts(config, [(size.height, size.width)])[0], side, _VIEWS)


class VtpruneLlavaOnevisionProcessor(PrunedProcessor, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision's processor with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(
    VtpruneLlavaOnevisionProcessor, info=VtpruneLlavaOnevisionInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class VtpruneLlavaOnevisionForConditionalGeneration(AnyresModel, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision whose images keep the tokens that the chosen method keeps."""

    adapter_class = ServedLlavaOnevisionAdapter
    abilities_of = staticmethod(abilities)
    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | flat_towers
