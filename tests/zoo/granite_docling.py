"""Tiny Granite Docling: tiles of 16 tokens after pixel shuffle with marks, a thumbnail last; features of tower layers
are added after the first decoder layers."""

from __future__ import annotations

from PIL import Image
from transformers import GraniteDoclingConfig, GraniteDoclingImageProcessor, PreTrainedModel
from transformers.models.granite_docling.configuration_granite_docling import (
    GraniteDoclingTextConfig,
    GraniteDoclingVisionConfig,
)

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, PAD, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(56, 56), (80, 40), (48, 64)]
TILE, TILES, TOKENS = 64, 6, 16
PLAIN_SIZE = (TILE, 2 * TILE)
AROUND, WHOLE, NEWLINE = START, END, MORE
PLACES = MORE + 1
"""Id of the mark of the first tile, those of the other tiles follow."""


def config() -> GraniteDoclingConfig:
    """A tiny configuration."""
    vision = vision_sizes(image_size=TILE)
    return GraniteDoclingConfig(
        vision_config=GraniteDoclingVisionConfig(
            **vision, out_hidden_size=64, scale_factor=2, deepstack_visual_indexes=[0, 1]
        ),
        text_config=GraniteDoclingTextConfig(
            **text_sizes(),
            embedding_multiplier=2.0,
            attention_multiplier=0.2,
            residual_multiplier=0.6,
            logits_scaling=2.0,
        ),
        image_token_id=IMAGE,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """Of a picture of `PLAIN_SIZE` the left and the right tile, and the thumbnail."""
    assert layout.views == 3
    return [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]


def block(height: int, width: int) -> list[int]:
    """Token ids of one picture that is cut into so many rows and columns of tiles."""
    tile = [IMAGE] * TOKENS
    line: list[int] = []
    for row in range(height):
        for column in range(width):
            line += [AROUND, PLACES + width * row + column, *tile]
        line.append(NEWLINE)
    return line + [NEWLINE, AROUND, WHOLE, *tile, AROUND] * (height * width > 1)


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    if not any(rows):
        return prompts(rows, seed=seed, left=left)
    made = GraniteDoclingImageProcessor(size={"height": TILE, "width": TILE}, max_patches=TILES)(
        rows, return_tensors="pt"
    )
    blocks = [[block(*cut) for cut in zip(*cuts, strict=True)] for cuts in zip(made["rows"], made["cols"], strict=True)]
    names = ("pixel_values", "pixel_attention_mask")
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in names}
