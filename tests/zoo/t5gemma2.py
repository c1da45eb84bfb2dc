"""Tiny T5Gemma 2: pictures are part of an encoder's sequence, which the decoder's merged attention reads."""

from __future__ import annotations

from transformers import T5Gemma2Config

from zoo.common import END, IMAGE, START, text_sizes, vision_sizes


def config() -> T5Gemma2Config:
    """Two layers each, one with a window."""
    sizes = text_sizes(num_hidden_layers=2, head_dim=16, sliding_window=16, query_pre_attn_scalar=16)
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    return T5Gemma2Config(
        encoder={
            "text_config": sizes | kinds,
            "vision_config": vision_sizes(model_type="siglip_vision_model", vision_use_head=False),
            "mm_tokens_per_image": 9,
            "boi_token_index": START,
            "eoi_token_index": END,
            "image_token_index": IMAGE,
        },
        decoder=sizes | kinds,
        image_token_index=IMAGE,
        eoi_token_index=END,
    )
