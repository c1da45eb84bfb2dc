"""Tiny Muse Spark: pictures as in Muse Glimmer, a decoder of mixture layers."""

from __future__ import annotations

from transformers import MuseSparkConfig

from zoo.common import IMAGE, MORE, VIDEO, text_sizes
from zoo.muse_glimmer import PLAIN_SIZE, SIZES, VISION, inputs, video_inputs

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "video_inputs"]


def config() -> MuseSparkConfig:
    """Three sliding layers, then a full one without rotations; the first layer is dense."""
    return MuseSparkConfig(
        text_config=text_sizes(
            head_dim=16,
            sliding_window=16,
            output_multiplier=1.0,
            moe_intermediate_size=48,
            moe_hidden_size=32,
            num_local_experts=4,
            num_experts_per_tok=2,
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        ),
        vision_config=VISION,
        audio_config={"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_hidden_size": 64},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=MORE + 8,
        out_hidden_size=128,
        projector_hidden_size=64,
    )
