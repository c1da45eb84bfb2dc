"""Tiny Command A Vision: tiles of 9 tokens after pixel shuffle with a mark behind each, a thumbnail last."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import (
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionImageProcessor,
    PreTrainedModel,
    SiglipVisionConfig,
)

from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes

PLAIN_SIZE = (48, 96)
SIZES = [(48, 64), (120, 40), (90, 100)]


def config() -> Cohere2VisionConfig:
    """SigLIP under a Cohere2 with sliding layers."""
    layers = ["sliding_attention", "full_attention"] * 2
    return Cohere2VisionConfig(
        vision_config=SiglipVisionConfig(**vision_sizes(vision_use_head=False)),
        text_config=Cohere2Config(**text_sizes(sliding_window=16, layer_types=layers)),
        image_token_id=IMAGE,
        alignment_intermediate_size=64,
    )


def view_boxes(layout: Any) -> list[tuple[float, float, float, float]]:
    """The part of a picture twice as wide as high that each view shows: its halves, then all of it."""
    assert layout.views == 3
    return [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    tower = model.config.vision_config
    side = tower.image_size // tower.patch_size // model.config.downsample_factor
    pixels, blocks = {}, []
    if pictures := [picture for row in rows for picture in row]:
        size = {"height": tower.image_size, "width": tower.image_size}
        processor = Cohere2VisionImageProcessor(size=size, patch_size=side, max_patches=6)
        pixels = processor(pictures, return_tensors="pt")
        tile = [IMAGE] * side**2 + [MORE]
        blocks = [[START, *tile * views, END] for views in pixels.pop("num_patches").tolist()]
    following = iter(blocks)
    return prompts([[next(following) for _ in row] for row in rows], seed=seed, left=left) | pixels
