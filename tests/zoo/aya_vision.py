"""Tiny Aya Vision: tiles of 9 tokens after pixel shuffle with marks before each, a thumbnail last."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import AyaVisionConfig, Cohere2Config, GotOcr2ImageProcessor, PreTrainedModel, SiglipVisionConfig

from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes

PLAIN_SIZE = (48, 96)
SIZES = [(48, 64), (120, 40), (90, 100)]
TILE, GLOBAL, FIRST = MORE, MORE + 1, MORE + 2


def config() -> AyaVisionConfig:
    """SigLIP under a Cohere2 with sliding layers."""
    layers = ["sliding_attention", "full_attention"] * 2
    return AyaVisionConfig(
        vision_config=SiglipVisionConfig(**vision_sizes(vision_use_head=False)),
        text_config=Cohere2Config(**text_sizes(sliding_window=16, layer_types=layers)),
        image_token_index=IMAGE,
    )


def view_boxes(layout: Any) -> list[tuple[float, float, float, float]]:
    """The part of a picture twice as wide as high that each view shows: its halves, then all of it."""
    assert layout.views == 3
    return [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    tower = model.config.vision_config
    tokens = [IMAGE] * (tower.image_size // tower.patch_size // model.config.downsample_factor) ** 2
    pixels, blocks = {}, []
    if pictures := [picture for row in rows for picture in row]:
        size = {"height": tower.image_size, "width": tower.image_size}
        processor = GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=6)
        pixels = processor(pictures, return_tensors="pt")
        for views in pixels.pop("num_patches").tolist():
            tiles = [mark for tile in range(views - 1) for mark in (TILE, FIRST + tile, *tokens)]
            blocks.append([START, *tiles, GLOBAL, *tokens, END])
    following = iter(blocks)
    return prompts([[next(following) for _ in row] for row in rows], seed=seed, left=left) | pixels
