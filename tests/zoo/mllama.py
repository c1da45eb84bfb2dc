"""Tiny Mllama: pictures are read by cross-attention layers, never part of the sequence."""

from __future__ import annotations

from transformers import MllamaConfig

from zoo.common import IMAGE, text_sizes


def config() -> MllamaConfig:
    """Four layers, two of them cross-attention."""
    text = text_sizes(cross_attention_layers=[1, 3], rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    tower = {
        "hidden_size": 32,
        "attention_heads": 2,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "intermediate_size": 64,
        "vision_output_dim": 96,
        "image_size": 48,
        "patch_size": 8,
        "intermediate_layers_indices": [0, 1],
    }
    return MllamaConfig(text_config=text, vision_config=tower, image_token_index=IMAGE)
