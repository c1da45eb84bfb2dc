"""Tiny DeepSeek-OCR 2: 144 learnt queries a local tile, then 256 of the whole picture, then one view separator."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import DeepseekOcr2Config, PreTrainedModel
from transformers.models.deepseek_ocr2.image_processing_deepseek_ocr2 import DeepseekOcr2ImageProcessor

from zoo.common import IMAGE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(60, 80), (100, 200), (150, 90)]
WHOLE, TILE = 208, 96
QUERIES_WHOLE, QUERIES_TILE = 256, 144
NO_PLACES = "tokens are queries that attend to all patches of a view"


def config() -> DeepseekOcr2Config:
    """SAM with window and global layers, four-fold strided convolutions, a decoder as encoder; dense and sparse text.

    A tower takes 144 queries for up to 144 patches and 256 for more, whatever the configuration: 13 x 13 patches of
    the whole picture and 6 x 6 of a tile are the smallest that need both.
    """
    return DeepseekOcr2Config(
        text_config=text_sizes(
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
        ),
        vision_config={
            "sam_config": vision_sizes(
                hidden_size=16,
                image_size=WHOLE,
                patch_size=4,
                mlp_dim=32,
                output_channels=16,
                downsample_channels=[24, 32],
                num_hidden_layers=2,
                num_attention_heads=1,
                window_size=7,
                global_attn_indexes=[1],
                initializer_range=0.02,
            ),
            "encoder_config": text_sizes(hidden_size=32, intermediate_size=64, num_hidden_layers=3),
        },
        image_token_id=IMAGE,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = DeepseekOcr2ImageProcessor(
        size={"height": WHOLE, "width": WHOLE}, tile_size=TILE, min_patches=2, max_patches=2
    )
    made = processor(images=pictures, return_tensors="pt")
    tiles = made["num_local_patches"].tolist()
    blocks = iter([[IMAGE] * (QUERIES_WHOLE + QUERIES_TILE * count + 1) for count in tiles])
    asked = prompts([[next(blocks) for _ in row] for row in rows], seed=seed, left=left)
    names = ("pixel_values", "pixel_values_local", "num_local_patches")
    return asked | {name: torch.as_tensor(made[name]) for name in names if name in made}
