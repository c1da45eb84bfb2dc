"""Tiny PI0: a PaliGemma fills a cache once, from which an action expert denoises; no words are generated."""

from __future__ import annotations

from transformers import PI0Config

from zoo.common import IMAGE, text_sizes, vision_sizes


def config() -> PI0Config:
    """Two Gemmas of two layers with heads of one size."""
    text = text_sizes(num_hidden_layers=2, head_dim=16)
    return PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": text | {"model_type": "gemma"},
            "vision_config": vision_sizes(model_type="siglip_vision_model", vision_use_head=False),
            "projection_dim": 64,
            "image_token_id": IMAGE,
        },
        dit_config=text | {"model_type": "gemma", "hidden_size": 32},
        chunk_size=4,
        max_state_dim=8,
        max_action_dim=8,
    )
