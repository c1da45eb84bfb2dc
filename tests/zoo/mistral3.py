"""Tiny Mistral 3: pictures of any size, merged 2 x 2 by a learned layer, a mark after each line and at the end."""

from __future__ import annotations

from PIL import Image
from transformers import (
    Mistral3Config,
    MistralConfig,
    PixtralImageProcessor,
    PixtralVisionConfig,
    PreTrainedModel,
)

from zoo.common import END, IMAGE, MORE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
PLAIN_SIZE = (64, 96)
BREAK = MORE


def config() -> Mistral3Config:
    """Return a configuration with a Pixtral tower and a Mistral decoder."""
    return Mistral3Config(
        text_config=MistralConfig(**text_sizes(head_dim=16, sliding_window=None)),
        vision_config=vision(),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )


def vision() -> PixtralVisionConfig:
    """Return the tower's configuration."""
    return PixtralVisionConfig(**vision_sizes(image_size=96, head_dim=16))


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Return everything that forward and generate take."""
    sizes = model.config.vision_config
    cell = sizes.patch_size * model.config.spatial_merge_size
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = PixtralImageProcessor(
        size={"longest_edge": sizes.image_size}, patch_size={"height": cell, "width": cell}
    )
    made = processor(pictures, return_tensors="pt")
    grids = iter((made["image_sizes"] // cell).tolist())
    blocks = [[lines(*next(grids)) for _ in row] for row in rows]
    pixels = {"pixel_values": made["pixel_values"], "image_sizes": made["image_sizes"]}
    return prompts(blocks, seed=seed, left=left) | pixels


def lines(height: int, width: int) -> list[int]:
    """Return the ids of a picture of that many tokens."""
    return [*([*[IMAGE] * width, BREAK] * height)[:-1], END]
