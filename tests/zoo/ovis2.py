"""Tiny Ovis2: a thumbnail and tiles of 9 soft visual words each, marks between columns and rows."""

from __future__ import annotations

from PIL import Image
from transformers import Ovis2Config, PreTrainedModel
from transformers.models.ovis2.image_processing_ovis2 import Ovis2ImageProcessor

from vtprune.layout import ImageLayout
from zoo.common import IMAGE, MORE, VOCAB, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 48), (150, 48), (96, 96)]
BEGIN, GRID, COLUMN, ROW, FINISH = range(MORE, MORE + 5)
TILE = 9


def config() -> Ovis2Config:
    """A tower whose 6 x 6 patches are merged 2 x 2, and a vocabulary of 50 visual words."""
    return Ovis2Config(
        text_config={"model_type": "qwen2", **text_sizes()},
        vision_config=vision_sizes(vocab_size=50, hidden_stride=2, num_visual_indicator_tokens=5),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[BEGIN, GRID, COLUMN, ROW, FINISH],
        vocab_size=VOCAB,
        hidden_size=64,
    )


def block(rows: int, columns: int) -> list[int]:
    """Token ids of one picture: the thumbnail, then its tiles row by row if it has more than one."""
    tile = [IMAGE] * TILE
    ids = [BEGIN, *tile, GRID]
    if rows * columns > 1:
        for row in range(rows):
            for column in range(columns):
                ids += tile if column == columns - 1 else [*tile, COLUMN]
            if row < rows - 1:
                ids.append(ROW)
    return [*ids, FINISH]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = Ovis2ImageProcessor(size={"height": 48, "width": 48}, crop_to_patches=True, max_patches=4)
    made = processor(images=pictures, return_tensors="pt")
    blocks = iter([block(*grid) for grid in made["grids"].tolist()])
    asked = prompts([[next(blocks) for _ in row] for row in rows], seed=seed, left=left)
    return asked | {"pixel_values": made["pixel_values"]}


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """The whole picture, then two by two tiles."""
    assert layout.views == 5
    halves = [(row / 2, column / 2, (row + 1) / 2, (column + 1) / 2) for row in range(2) for column in range(2)]
    return [(0.0, 0.0, 1.0, 1.0), *halves]
