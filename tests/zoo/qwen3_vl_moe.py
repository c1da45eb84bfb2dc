"""Tiny Qwen3-VL-MoE: as Qwen3-VL, with a mixture of experts in every layer but one."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3VLMoeConfig

from zoo.common import text_sizes
from zoo.qwen2_vl import ids
from zoo.qwen3_vl import SIZES, deepstack_vision, inputs, rope, video_inputs

__all__ = ["SIZES", "config", "experts", "inputs", "video_inputs"]


def experts(**changes: Any) -> dict[str, Any]:
    """Sizes of the mixtures: two of four experts for each token."""
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32} | changes


def config() -> Qwen3VLMoeConfig:
    """Four layers, the first two of which take features of the tower; layer 1 is dense."""
    text = text_sizes(rope_parameters=rope(), head_dim=16, mlp_only_layers=[1], **experts())
    return Qwen3VLMoeConfig(text_config=text, vision_config=deepstack_vision(), **ids())
