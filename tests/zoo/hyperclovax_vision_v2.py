"""Tiny HyperCLOVA X Vision V2: the tower of Qwen2.5-VL, a linear projector, plain positions, scaled logits."""

from __future__ import annotations

from transformers import HyperCLOVAXVisionV2Config

from zoo.common import IMAGE, VIDEO, text_sizes
from zoo.exaone4_5 import SIZES, inputs, tower, video_inputs

__all__ = ["SIZES", "config", "inputs", "video_inputs"]


def config() -> HyperCLOVAXVisionV2Config:
    """The tiny configuration."""
    text = text_sizes(
        model_type="hyperclovax",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        residual_multiplier=0.8,
        logits_scaling=0.5,
    )
    vision = tower(model_type="qwen2_5_vl_vision", out_hidden_size=48)
    return HyperCLOVAXVisionV2Config(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO, tie_word_embeddings=False
    )
