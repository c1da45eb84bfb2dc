"""Tiny Qwen3.5: images as in Qwen3-VL without deepstack; two of three decoder layers are gated delta nets."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3_5Config

from zoo.common import text_sizes
from zoo.qwen2_vl import ids
from zoo.qwen3_vl import SIZES, inputs, rope, video_inputs, vision

__all__ = ["SIZES", "config", "hybrid", "inputs", "video_inputs"]


def hybrid(attention: str = "full_attention") -> dict[str, Any]:
    """Sizes of six layers, of which the third and the last attend; half of each head is rotated."""
    return {
        "num_hidden_layers": 6,
        "layer_types": ["linear_attention", "linear_attention", attention] * 2,
        "head_dim": 16,
        "rope_parameters": rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1]),
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }


def config() -> Qwen3_5Config:
    """Six hybrid layers."""
    return Qwen3_5Config(text_config=text_sizes(**hybrid()), vision_config=vision(), **ids())
