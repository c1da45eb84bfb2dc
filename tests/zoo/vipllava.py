"""Tiny VipLLaVA: LLaVA whose projector sees several layers of the tower side by side."""

from __future__ import annotations

from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig

from zoo.common import IMAGE, text_sizes, vision_sizes
from zoo.llava import SIZES, inputs

__all__ = ["SIZES", "config", "inputs"]


def config() -> VipLlavaConfig:
    """CLIP with a class token under a Llama; three of the tower's hidden states are concatenated."""
    return VipLlavaConfig(
        vision_config=CLIPVisionConfig(**vision_sizes()),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=IMAGE,
        image_seq_length=36,
        vision_feature_layer=[-1, -2, 1],
    )
