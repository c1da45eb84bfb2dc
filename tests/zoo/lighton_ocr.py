"""Tiny LightOnOCR: pictures of any size, merged 2 x 2 by a learned layer, without marks between lines."""

from __future__ import annotations

from PIL import Image
from transformers import (
    LightOnOcrConfig,
    PixtralImageProcessor,
    PreTrainedModel,
    Qwen3Config,
)

from zoo.common import END, IMAGE, START, Inputs, prompts, text_sizes
from zoo.mistral3 import PLAIN_SIZE, SIZES, vision

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs"]


def config() -> LightOnOcrConfig:
    """Return a configuration with a Pixtral tower and a Qwen 3 decoder."""
    return LightOnOcrConfig(
        text_config=Qwen3Config(**text_sizes(head_dim=16)),
        vision_config=vision(),
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )


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
    counts = iter((made["image_sizes"] // cell).prod(-1).tolist())
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    pixels = {"pixel_values": made["pixel_values"], "image_sizes": made["image_sizes"]}
    return prompts(blocks, seed=seed, left=left) | pixels
