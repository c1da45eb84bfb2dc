"""Qwen3-VL: as Qwen2.5-VL, with features that the tower adds behind the first decoder layers (DeepStack)."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtprune.adapters.base import Adapter
from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.processing import PrunedProcessor
from vtprune.adapters.vllm.qwen2_5_vl import GridInfo, GridModel, GridTower, grid_abilities

_ARCHITECTURE = "VtpruneQwen3VLForConditionalGeneration"


def abilities(config: Any) -> Abilities:
    """Those of its tower."""
    return grid_abilities(config, _ARCHITECTURE)


class ServedQwen3VLAdapter(GridTower, Adapter):
    """Shows the library where things are in vLLM's Qwen3-VL."""


class VtpruneQwen3VLInfo(GridInfo, Qwen3VLProcessingInfo):
    """Grids follow from the processor."""

    abilities_of = staticmethod(abilities)


class VtpruneQwen3VLProcessor(PrunedProcessor, Qwen3VLMultiModalProcessor):
    """Qwen3-VL's processor with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(
    VtpruneQwen3VLProcessor, info=VtpruneQwen3VLInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class VtpruneQwen3VLForConditionalGeneration(GridModel, Qwen3VLForConditionalGeneration):
    """Qwen3-VL whose images keep the tokens that the chosen method keeps, and what DeepStack adds to these."""

    multiscale_dim: int
    adapter_class = ServedQwen3VLAdapter
    abilities_of = staticmethod(abilities)

    @property
    def embedding_width(self) -> int:
        """The states, and what is added behind each of the first layers."""
        return self.width + (self.multiscale_dim if self.use_deepstack else 0)
