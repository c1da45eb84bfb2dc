"""Tiny Cosmos3 (reasoner): tower and decoder are those of Qwen3-VL, deepstack included."""

from __future__ import annotations

from transformers import Cosmos3OmniConfig, Qwen3VLTextConfig, Qwen3VLVisionConfig

from zoo.common import text_sizes
from zoo.qwen2_vl import ids
from zoo.qwen3_vl import SIZES, deepstack_vision, inputs, rope, video_inputs

__all__ = ["SIZES", "config", "inputs", "video_inputs"]


def config() -> Cosmos3OmniConfig:
    """Four layers, the first two of which take features of the tower."""
    return Cosmos3OmniConfig(
        text_config=Qwen3VLTextConfig(**text_sizes(rope_parameters=rope(), head_dim=16)),
        vision_config=Qwen3VLVisionConfig(**deepstack_vision()),
        **ids(),
    )
