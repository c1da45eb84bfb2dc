"""Tiny Janus: pictures padded to a square, 36 tokens each; the modules that generate pictures are there but idle."""

from __future__ import annotations

from PIL import Image
from transformers import (
    JanusConfig,
    JanusImageProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedModel,
)

from zoo.common import END, IMAGE, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
SIDE, TOKENS = 48, 36


def config() -> JanusConfig:
    """A tiny configuration."""
    vision = vision_sizes(image_size=SIDE)
    del vision["intermediate_size"]
    return JanusConfig(
        vision_config=JanusVisionConfig(**vision, mlp_ratio=2.0, projection_dim=64, num_image_tokens=TOKENS),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=64,
            image_token_embed_dim=64,
        ),
        text_config=LlamaConfig(**text_sizes()),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts(rows, seed=seed, left=left)
    made = JanusImageProcessor(size={"height": SIDE, "width": SIDE})(pictures, return_tensors="pt")
    blocks = [[[START, *[IMAGE] * TOKENS, END]] * len(row) for row in rows]
    return prompts(blocks, seed=seed, left=left) | {"pixel_values": made["pixel_values"]}
