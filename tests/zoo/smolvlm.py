"""Tiny SmolVLM: Idefics3's tiles of 9 tokens, the whole picture last; frames of videos are single tiles."""

from __future__ import annotations

from PIL import Image
from transformers import (
    LlamaConfig,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMVideoProcessor,
    SmolVLMVisionConfig,
)

from zoo.common import IMAGE, MORE, PAD, Inputs, prompts, text_sizes, vision_sizes
from zoo.idefics3 import CUT, PLAIN_SIZE, SIZES, TILE, block, tiled, view_boxes

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "video_inputs", "view_boxes"]

NO_FRAMES = "its frames are pictures with words between, as several pictures are: nothing tells a video"


def config() -> SmolVLMConfig:
    """A tiny configuration."""
    return SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**vision_sizes(image_size=TILE)),
        text_config=LlamaConfig(**text_sizes()),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    return tiled(SmolVLMImageProcessor(**CUT), rows, seed, left)


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """The same with videos, whose frames are pictures to the model; `pixel_values` has one entry a video."""
    videos = [frames for row in rows for frames in row]
    if not videos:
        return prompts(rows, seed=seed, left=left)
    made = SmolVLMVideoProcessor(**CUT)(videos, return_tensors="pt")
    frame = [MORE, MORE, *block(0, 0)]
    blocks = [[[*[MORE] * 3, *frame * len(frames), MORE] for frames in row] for row in rows]
    names = ("pixel_values", "pixel_attention_mask")
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in names}
