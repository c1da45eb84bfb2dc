"""Tiny LLaVA-NeXT: a 16-token view of all, then the tiles as one grid without padding, newlines after its lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from zoo.common import IMAGE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
PLAIN_SIZE = (64, 64)
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def config() -> LlavaNextConfig:
    """CLIP with a class token, tiles of 4 x 4 patches, under a Llama."""
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision_sizes(image_size=32)),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
    )


def count(config: PreTrainedConfig, size: Sequence[int], shrink: int = 1) -> int:
    """Number of visual tokens of a picture of this height and width, where sides of tiles shrink by a factor."""
    tower = config.vision_config
    side = tower.image_size // tower.patch_size // shrink
    height, width = get_anyres_image_grid_shape(tuple(size), config.image_grid_pinpoints, tower.image_size)
    _, lines, columns = unpad_image(torch.empty(1, height * side, width * side), tuple(size)).shape
    return side * side + lines * (columns + 1)


def view_boxes(layout: Any) -> list[tuple[float, float, float, float]]:
    """The part of a picture without padding that each view shows: all of it, then the tiles."""
    rows, columns = layout.crops
    tiles = [(row, column) for row in range(rows) for column in range(columns)]
    parts = [(row / rows, column / columns, (row + 1) / rows, (column + 1) / columns) for row, column in tiles]
    return [(0.0, 0.0, 1.0, 1.0), *parts]


def inputs(
    model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True, shrink: int = 1
) -> Inputs:
    """Everything that forward and generate take."""
    side = model.config.vision_config.image_size
    blocks = [[[IMAGE] * count(model.config, (item.height, item.width), shrink) for item in row] for row in rows]
    made = prompts(blocks, seed=seed, left=left)
    if pictures := [picture for row in rows for picture in row]:
        processor = LlavaNextImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=model.config.image_grid_pinpoints,
        )
        made |= processor(pictures, return_tensors="pt")
    return made
