"""Tiny GLM-4.5V: pictures as in GLM-4.1V, a decoder of one dense layer and then mixtures of experts."""

from __future__ import annotations

from transformers import Glm4vMoeConfig

from zoo import glm4v
from zoo.glm4v import PLAIN_SIZE, SIZES, inputs, video_inputs

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "video_inputs"]


def config() -> Glm4vMoeConfig:
    """The tiny configuration."""
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
    }
    return Glm4vMoeConfig(text_config=glm4v.decoder(**experts), vision_config=glm4v.tower(), **glm4v.MARKS)
