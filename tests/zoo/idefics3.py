"""Tiny Idefics3: tiles of 9 tokens after pixel shuffle with row and column marks, the whole picture last."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3VisionConfig, LlamaConfig, PreTrainedModel

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, PAD, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (32, 96)]
TILE, TILES, TOKENS = 48, 3, 9
PLAIN_SIZE = (2 * TILE, 3 * TILE)
CUT: dict[str, Any] = {"size": {"longest_edge": TILE * TILES}, "max_image_size": {"longest_edge": TILE}}
AROUND, WHOLE, NEWLINE = START, END, MORE
PLACES = MORE + 1
"""Id of the mark of row 0 and column 0, those of the other tiles follow."""


def config() -> Idefics3Config:
    """A tiny configuration."""
    return Idefics3Config(
        vision_config=Idefics3VisionConfig(**vision_sizes(image_size=TILE)),
        text_config=LlamaConfig(**text_sizes()),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """Of a picture of `PLAIN_SIZE` two rows of three tiles, and the whole."""
    assert layout.views == 7
    tiles = [(row / 2, column / 3, (row + 1) / 2, (column + 1) / 3) for row in range(2) for column in range(3)]
    return [*tiles, (0.0, 0.0, 1.0, 1.0)]


def block(height: int, width: int) -> list[int]:
    """Token ids of one picture that is cut into so many rows and columns of tiles."""
    tile = [IMAGE] * TOKENS
    line: list[int] = []
    for row in range(height):
        for column in range(width):
            line += [AROUND, PLACES + TILES * row + column, *tile]
        line.append(NEWLINE)
    return line + [NEWLINE] * bool(line) + [AROUND, WHOLE, *tile, AROUND]


def tiled(processor: Any, rows: list[list[Image.Image]], seed: int, left: bool) -> Inputs:
    """Inputs from pictures that a processor cuts into tiles."""
    if not any(rows):
        return prompts(rows, seed=seed, left=left)
    made = processor(rows, return_row_col_info=True, return_tensors="pt")
    blocks = [[block(*cut) for cut in zip(*cuts, strict=True)] for cuts in zip(made["rows"], made["cols"], strict=True)]
    names = ("pixel_values", "pixel_attention_mask")
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in names}


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    return tiled(Idefics3ImageProcessor(**CUT), rows, seed, left)
