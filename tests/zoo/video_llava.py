"""Tiny Video-LLaVA: a picture as 36 patches of one tower, a frame as 36 patches and the class token of another."""

from __future__ import annotations

from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
    VideoLlavaConfig,
    VideoLlavaImageProcessor,
    VideoLlavaVideoProcessor,
)

from zoo.common import IMAGE, VIDEO, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]


def config() -> VideoLlavaConfig:
    """Two CLIPs with class tokens under a Llama."""
    return VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**vision_sizes()),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=36,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    tower = model.config.vision_config
    side = tower.image_size
    made = prompts([[[IMAGE] * (side // tower.patch_size) ** 2 for _ in row] for row in rows], seed=seed, left=left)
    if pictures := [picture for row in rows for picture in row]:
        processor = VideoLlavaImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        made |= processor(images=pictures, return_tensors="pt", return_legacy_image_output=False)
    return made


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take; videos have the same number of frames."""
    tower = model.config.vision_config
    side = tower.image_size
    frame = (side // tower.patch_size) ** 2 + 1
    made = prompts([[[VIDEO] * frame * len(item) for item in row] for row in rows], seed=seed, left=left)
    if videos := [item for row in rows for item in row]:
        processor = VideoLlavaVideoProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_sample_frames=False
        )
        made |= {"pixel_values_videos": processor(videos, return_tensors="pt")["pixel_values_videos"]}
    return made
