"""Tiny LLaVA-NeXT-Video: pictures as LLaVA-NeXT has them, frames of videos as 2 x 2 averages of their patches."""

from __future__ import annotations

from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoVideoProcessor,
    PreTrainedModel,
)

from zoo.common import IMAGE, VIDEO, Inputs, prompts, text_sizes, vision_sizes
from zoo.llava_next import PINPOINTS, PLAIN_SIZE, SIZES, inputs, view_boxes

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "video_inputs", "view_boxes"]


def config() -> LlavaNextVideoConfig:
    """CLIP with a class token, tiles of 4 x 4 patches, under a Llama."""
    return LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**vision_sizes(image_size=32)),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
        video_seq_length=4,
    )


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take; videos have the same number of frames."""
    tower = model.config.vision_config
    side = tower.image_size
    frame = (side // tower.patch_size) ** 2 // model.config.spatial_pool_stride**2
    made = prompts([[[VIDEO] * frame * len(item) for item in row] for row in rows], seed=seed, left=left)
    if videos := [item for row in rows for item in row]:
        processor = LlavaNextVideoVideoProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_sample_frames=False
        )
        made |= {"pixel_values_videos": processor(videos, return_tensors="pt")["pixel_values_videos"]}
    return made
