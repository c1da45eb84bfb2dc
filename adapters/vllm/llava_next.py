"""LLaVA-NeXT (1.6): a thumbnail and crops, unpadded, with newline tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtprune.adapters.llava_next import LlavaNextAdapter, anyres_layouts
from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.llava import LlavaTower, LlavaTowerModel, flat_towers, llava_abilities
from vtprune.adapters.vllm.processing import PrunedInfo, PrunedProcessor
from vtprune.layout import ImageLayout

_ARCHITECTURE = "VtpruneLlavaNextForConditionalGeneration"


def abilities(config: Any) -> Abilities:
    """Those of its tower."""
    return llava_abilities(config, _ARCHITECTURE)


class ServedLlavaNextAdapter(LlavaTower, LlavaNextAdapter):
    """Shows the library where things are in vLLM's LLaVA-NeXT."""


class VtpruneLlavaNextInfo(PrunedInfo, LlavaNextProcessingInfo):
    """Views and unpadding follow from the size of the picture."""

    abilities_of = staticmethod(abilities)

    def image_layout(self, items: Any, number: int, mm_kwargs: Mapping[str, object], data: Any) -> ImageLayout:
        """The canvas that fits the picture best."""
        size = items.get_image_size(number)
        return anyres_layouts(self.get_hf_config(), [(size.height, size.width)])[0]


class VtpruneLlavaNextProcessor(PrunedProcessor, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT's processor with fewer placeholders."""


class AnyresModel(LlavaTowerModel):
    """Mixed into models whose pictures are a thumbnail and crops."""

    def picture_tokens(self, kwargs: dict[str, Any], pictures: int) -> list[int]:
        """Follow from the sizes; interpolation only makes fewer."""
        return [layout.tokens for layout in anyres_layouts(self.config, kwargs["image_sizes"])]

    def watched_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The views of all pictures in one tensor, missing ones zero, as transformers has them."""
        pixels = kwargs["pixel_values"]
        if not isinstance(pixels, torch.Tensor):
            pixels = torch.nn.utils.rnn.pad_sequence(list(pixels), batch_first=True)
        return {**kwargs, "pixel_values": pixels}


@MULTIMODAL_REGISTRY.register_processor(
    VtpruneLlavaNextProcessor, info=VtpruneLlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class VtpruneLlavaNextForConditionalGeneration(AnyresModel, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT whose images keep the tokens that the chosen method keeps."""

    adapter_class = ServedLlavaNextAdapter
    abilities_of = staticmethod(abilities)
    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | flat_towers
