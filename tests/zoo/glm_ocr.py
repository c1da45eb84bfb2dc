"""Tiny GLM-OCR: pictures as in GLM-4.1V, with normed queries and keys and no learned positions in the tower."""

from __future__ import annotations

from transformers import GlmOcrConfig

from zoo import glm4v
from zoo.glm4v import PLAIN_SIZE, SIZES, inputs, video_inputs

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "video_inputs"]


def config() -> GlmOcrConfig:
    """The tiny configuration."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = glm4v.decoder(head_dim=16, rope_parameters=rope)
    return GlmOcrConfig(text_config=text, vision_config=glm4v.tower(), **glm4v.MARKS)
