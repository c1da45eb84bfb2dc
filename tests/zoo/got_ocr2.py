"""Tiny GOT-OCR2: tiles of 16 tokens from a SAM tower with windows and convolutions of stride 2, a thumbnail last."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import (
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    GotOcr2ImageProcessor,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.models.got_ocr2.configuration_got_ocr2 import GotOcr2VisionConfig

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, START, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
TILE, TOKENS = 128, 16
PLAIN_SIZE = (TILE, 2 * TILE)
EARLY = 0.125
"""Share of a view by which its tokens lie too far up and left: strided convolutions centre them at corners of cells."""


def tower_sizes() -> dict[str, Any]:
    """Arguments of the tower's configuration: two layers with windows of 7 x 7 of the 16 x 16 patches, two without."""
    return {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": 8,
        "window_size": 7,
        "global_attn_indexes": [1, 3],
        "mlp_dim": 64,
        "initializer_range": 0.02,
    }


def config() -> GotOcr2Config:
    """A tiny configuration."""
    return GotOcr2Config(
        vision_config=GotOcr2VisionConfig(**tower_sizes()),
        text_config=Qwen2Config(**text_sizes()),
        image_token_index=IMAGE,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """Of a picture of `PLAIN_SIZE` the left and the right tile, and the thumbnail."""
    assert layout.views == 3
    half = EARLY / 2
    tiles = [(-EARLY, left - half, 1.0 - EARLY, left + 0.5 - half) for left in (0.0, 0.5)]
    return [*tiles, (-EARLY, -EARLY, 1.0 - EARLY, 1.0 - EARLY)]


class Maker:
    """Makes the model with random embeddings of positions, which are zero as initialised; its tower is always eager."""

    @staticmethod
    def _from_config(config: GotOcr2Config, attn_implementation: str) -> PreTrainedModel:
        """The model with random weights."""
        attention = {"": "eager", "vision_config": "eager", "text_config": attn_implementation}
        model: PreTrainedModel = GotOcr2ForConditionalGeneration._from_config(config, attn_implementation=attention)
        for name, weight in model.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                torch.nn.init.normal_(weight, std=0.1)
        return model


MODEL_CLASS = Maker


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts(rows, seed=seed, left=left)
    processor = GotOcr2ImageProcessor(size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=6)
    made = processor(pictures, return_tensors="pt")
    tiles = iter(made["num_patches"].tolist())
    blocks = [[[START, *[IMAGE] * (TOKENS * next(tiles)), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {"pixel_values": made["pixel_values"]}
