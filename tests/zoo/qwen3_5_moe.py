"""Tiny Qwen3.5-MoE: as Qwen3.5, with a mixture of experts and a shared expert in every layer."""

from __future__ import annotations

from transformers import Qwen3_5MoeConfig

from zoo.common import text_sizes
from zoo.qwen2_vl import ids
from zoo.qwen3_5 import SIZES, hybrid, inputs, video_inputs
from zoo.qwen3_vl import vision
from zoo.qwen3_vl_moe import experts

__all__ = ["SIZES", "config", "inputs", "video_inputs"]


def config() -> Qwen3_5MoeConfig:
    """Six hybrid layers."""
    text = text_sizes(**hybrid(), **experts(shared_expert_intermediate_size=32))
    return Qwen3_5MoeConfig(text_config=text, vision_config=vision(), **ids())
