"""Tiny Granite 4 Vision: LLaVA-NeXT's views after windowed q-formers, added to the states before six decoder layers."""

from __future__ import annotations

from fractions import Fraction

from PIL import Image
from transformers import (
    Blip2QFormerConfig,
    Granite4VisionConfig,
    Granite4VisionTextConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from zoo import llava_next
from zoo.common import IMAGE, Inputs, text_sizes, vision_sizes
from zoo.llava_next import view_boxes

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "view_boxes"]

PLAIN_SIZE = (128, 128)
SIZES = [(48, 64), (80, 40), (100, 100)]


def config() -> Granite4VisionConfig:
    """SigLIP, tiles of 8 x 8 patches that become 4 x 4 tokens, under a Granite."""
    return Granite4VisionConfig(
        vision_config=SiglipVisionConfig(**vision_sizes(hidden_size=64, image_size=64, vision_use_head=False)),
        text_config=Granite4VisionTextConfig(**text_sizes(num_hidden_layers=8, attention_multiplier=0.25)),
        qformer_config=Blip2QFormerConfig(
            num_hidden_layers=1,
            intermediate_size=64,
            cross_attention_frequency=1,
            max_position_embeddings=64,
            use_qformer_text_input=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[64, 128], [128, 64], [128, 128], [192, 64], [64, 192]],
        image_seq_length=16,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[1, 2], [-1, 0]],
        spatial_target_layers=[3, 4, 5, 6],
        projector_dropout=0.0,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    shrink = int(1 / Fraction(model.config.downsample_rate))
    return llava_next.inputs(model, rows, seed=seed, left=left, shrink=shrink)
