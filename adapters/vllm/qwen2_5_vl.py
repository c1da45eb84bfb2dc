"""Qwen2.5-VL: grids of any size, windows in the tower, positions with a row and a column; videos pass unpruned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import nn
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtprune.adapters.base import Vision
from vtprune.adapters.qwen2_5_vl import Qwen2_5VLAdapter
from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.mrope import GridPositionsModel
from vtprune.adapters.vllm.processing import PrunedInfo, PrunedProcessor
from vtprune.layout import ImageLayout, video_layout
from vtprune.pruner import Depths, Signal

_ARCHITECTURE = "VtpruneQwen2_5_VLForConditionalGeneration"


def grid_abilities(config: Any, name: str) -> Abilities:
    """What a tower of the Qwen kind gives to look at."""
    depths = Depths(int(config.get_text_config().num_hidden_layers), int(config.vision_config.depth))
    missing = {
        Signal.ENCODER_CLS: f"the vision tower of {name} has no CLS token",
        Signal.PIXELS: f"the vision tower of {name} is not known to take smaller pictures",
    }
    return Abilities(name, depths, missing)


def abilities(config: Any) -> Abilities:
    """Those of its tower."""
    return grid_abilities(config, _ARCHITECTURE)


class GridTower:
    """Mixed into an adapter: the tower is vLLM's, of the Qwen kind."""

    model: Any

    @property
    def base(self) -> nn.Module:
        """The model itself."""
        found: nn.Module = self.model
        return found

    @cached_property
    def vision(self) -> Vision:
        """The blocks, and vLLM's own attention in each; patches are merged before the decoder."""
        blocks = tuple(self.model.visual.blocks)
        merge = int(self.model.config.vision_config.spatial_merge_size)
        attentions = tuple(block.attn.attn for block in blocks)
        return Vision(blocks, attentions, (len(blocks) - 1,), merge=merge, blocks=True)


class GridInfo(PrunedInfo):
    """Mixed into the processing info of models of the Qwen kind."""

    def image_layout(self, items: Any, number: int, mm_kwargs: Mapping[str, object], data: Any) -> ImageLayout:
        """The grid that the processor made of the picture, after merging."""
        merge = int(self.get_hf_config().vision_config.spatial_merge_size)
        frames, height, width = data["image"][number]["image_grid_thw"].data.tolist()
        return video_layout(frames, height // merge, width // merge)


class GridModel(GridPositionsModel):
    """Mixed into models of the Qwen kind: patches of all pictures lie one after another."""

    def picture_tokens(self, kwargs: dict[str, Any], pictures: int) -> list[int]:
        """Follow from the grids."""
        merge = int(self.config.vision_config.spatial_merge_size)
        found: list[int] = (kwargs["image_grid_thw"].prod(dim=1) // merge**2).tolist()
        return found

    def pictures(self, kwargs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some grids and their patches."""
        grids = kwargs["image_grid_thw"]
        sizes = grids.prod(dim=1).tolist()
        first, last = sum(sizes[:start]), sum(sizes[:end])
        return {"pixel_values": kwargs["pixel_values"][first:last], "image_grid_thw": grids[start:end]}


class ServedQwen2_5VLAdapter(GridTower, Qwen2_5VLAdapter):
    """Shows the library where things are in vLLM's Qwen2.5-VL."""


class VtpruneQwen2_5_VLInfo(GridInfo, Qwen2_5_VLProcessingInfo):
    """Grids follow from the processor."""

    abilities_of = staticmethod(abilities)


class VtpruneQwen2_5_VLProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's processor with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(
    VtpruneQwen2_5_VLProcessor, info=VtpruneQwen2_5_VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class VtpruneQwen2_5_VLForConditionalGeneration(GridModel, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose images keep the tokens that the chosen method keeps."""

    adapter_class = ServedQwen2_5VLAdapter
    abilities_of = staticmethod(abilities)
