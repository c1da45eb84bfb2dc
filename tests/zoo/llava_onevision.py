"""Tiny LLaVA-OneVision: LLaVA-NeXT's views of a lone picture, interpolated if too many; one tile if a row has more."""

from __future__ import annotations

import math

import torch
from PIL import Image
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.modeling_llava_onevision import get_anyres_image_grid_shape, unpad_image

from zoo.common import IMAGE, VIDEO, Inputs, prompts, text_sizes, vision_sizes
from zoo.llava_next import view_boxes

__all__ = ["PLAIN_SIZE", "SIZES", "config", "count", "inputs", "video_inputs", "view_boxes"]

PLAIN_SIZE = (32, 64)
UNEQUAL_FRAMES = "frames are interpolated, and tokens at their borders overlap"
SIZES = [(48, 64), (80, 40), (56, 56)]


def config() -> LlavaOnevisionConfig:
    """SigLIP, tiles of 4 x 4 patches of which a picture's grid keeps about three at most, under a Qwen2."""
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision_sizes(image_size=32, vision_use_head=False)),
        text_config=Qwen2Config(**text_sizes()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [64, 64], [96, 32], [32, 96]],
        vision_aspect_ratio="anyres_max_3",
    )


def count(config: PreTrainedConfig, height: int, width: int) -> int:
    """Number of visual tokens of a lone picture of this size."""
    tower = config.vision_config
    side = tower.image_size // tower.patch_size
    tiles = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, tower.image_size)
    _, lines, columns = unpad_image(torch.empty(1, tiles[0] * side, tiles[1] * side), (height, width)).shape
    limit = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(lines * columns / (limit * side**2))
    if ratio > 1.1:
        lines, columns = int(lines // ratio), int(columns // ratio)
    return side * side + lines * (columns + 1)


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    tower = model.config.vision_config
    tile = (tower.image_size // tower.patch_size) ** 2 + 1
    blocks = [
        [[IMAGE] * (count(model.config, item.height, item.width) if len(row) == 1 else tile) for item in row]
        for row in rows
    ]
    made = prompts(blocks, seed=seed, left=left)
    if nested := [row for row in rows if row]:
        processor = LlavaOnevisionImageProcessor(
            size={"height": tower.image_size, "width": tower.image_size},
            image_grid_pinpoints=model.config.image_grid_pinpoints,
        )
        made |= processor(nested, return_tensors="pt")
    return made


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take; videos have the same number of frames."""
    tower = model.config.vision_config
    frame = math.ceil(tower.image_size // tower.patch_size / 2) ** 2
    blocks = [[[VIDEO] * (frame * len(item) + 1) for item in row] for row in rows]
    made = prompts(blocks, seed=seed, left=left)
    if videos := [item for row in rows for item in row]:
        processor = LlavaOnevisionVideoProcessor(size={"height": tower.image_size, "width": tower.image_size})
        made |= {"pixel_values_videos": processor(videos, return_tensors="pt")["pixel_values_videos"]}
    return made
