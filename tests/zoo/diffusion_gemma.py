"""Tiny DiffusionGemma: an encoder of prompts with Gemma 4's pictures, whose keys a decoder of noisy text reads."""

from __future__ import annotations

from typing import Any

from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig

from zoo.common import END, IMAGE, START
from zoo.gemma4 import text_changes, vision


def config() -> DiffusionGemmaConfig:
    """Return a configuration with windows of 16 tokens in every second layer and experts in all."""
    sizes: dict[str, Any] = text_changes()
    del sizes["attention_k_eq_v"]
    return DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**sizes, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
        vision_config=vision(),
        image_token_id=IMAGE,
        boi_token_id=START,
        eoi_token_id=END,
        canvas_length=8,
    )
