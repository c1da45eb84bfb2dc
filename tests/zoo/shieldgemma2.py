"""Tiny ShieldGemma 2: Gemma 3 under another name; a picture is 16 tokens, and 16 more for each of its crops."""

from __future__ import annotations

from transformers import ShieldGemma2Config, SiglipVisionConfig

from zoo.common import END, IMAGE, START, vision_sizes
from zoo.gemma3 import MODEL_CLASS, PLAIN_SIZE, SIZES, inputs, text, view_boxes

__all__ = ["MODEL_CLASS", "PLAIN_SIZE", "SIZES", "config", "inputs", "view_boxes"]


def config() -> ShieldGemma2Config:
    """Return a configuration with sliding windows of 16 tokens in three of four layers."""
    return ShieldGemma2Config(
        text_config=text(),
        vision_config=SiglipVisionConfig(**vision_sizes(image_size=64, vision_use_head=False)),
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
