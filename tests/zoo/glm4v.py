"""Tiny GLM-4.1V: any size of picture, one token per 2 x 2 patches after a convolution; videos are frames with times."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import Glm4vConfig, PreTrainedModel
from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(64, 96), (112, 64), (80, 80)]
PLAIN_SIZE = (64, 96)
VIDEO_START, VIDEO_END = MORE, MORE + 1
MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": VIDEO_START,
    "video_end_token_id": VIDEO_END,
}
PATCHES = {
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 2 * 256, "longest_edge": 2 * 256 * 120},
}


def tower(**changes: Any) -> dict[str, Any]:
    """Sizes of the vision tower."""
    sizes = vision_sizes(depth=3, num_heads=2, spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=64)
    return {key: sizes[key] for key in sizes if key not in ("num_hidden_layers", "num_attention_heads")} | changes


def decoder(**changes: Any) -> dict[str, Any]:
    """Sizes of the decoder; rotary embedding of half of each head, in sections for time, height and width."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    return text_sizes(rope_parameters=rope) | changes


def config() -> Glm4vConfig:
    """The tiny configuration."""
    return Glm4vConfig(text_config=decoder(), vision_config=tower(), **MARKS)


def image_blocks(rows: list[list[Image.Image]], processor: Any) -> tuple[list[list[list[int]]], Inputs]:
    """Token ids of each picture, and what an image processor that makes grids of patches returns."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return [[] for _ in rows], {}
    made = dict(processor(pictures, return_tensors="pt"))
    counts = iter((made["image_grid_thw"].prod(-1) // processor.merge_size**2).tolist())
    return [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows], made


def video_blocks(rows: list[list[list[Image.Image]]], processor: Any) -> tuple[list[list[list[int]]], Inputs]:
    """Token ids of each video, frame by frame with a word for its time, and what the video processor returns."""
    videos = [video for row in rows for video in row]
    if not videos:
        return [[] for _ in rows], {}
    made = dict(processor(videos, return_tensors="pt", do_sample_frames=False))
    grids = iter(made["video_grid_thw"].tolist())

    def block() -> list[int]:
        frames, height, width = next(grids)
        count = height * width // processor.merge_size**2
        shown = [token for time in range(frames) for token in (START, *[IMAGE] * count, END, 10 + time)]
        return [VIDEO_START, *shown, VIDEO_END]

    return [[block() for _ in row] for row in rows], made


def token_types(ids: torch.Tensor) -> torch.Tensor:
    """1 at tokens of images, 2 at tokens of videos, which share their placeholder."""
    inside = (ids == VIDEO_START).cumsum(-1) > (ids == VIDEO_END).cumsum(-1)
    return (ids == IMAGE).long() * (1 + inside.long())


def with_types(text: Inputs) -> Inputs:
    """Prompts and their token types."""
    return text | {"mm_token_type_ids": token_types(text["input_ids"])}


def inputs(
    model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True, processor: Any = None
) -> Inputs:
    """Everything that forward and generate take."""
    blocks, made = image_blocks(rows, processor or Glm4vImageProcessor(**PATCHES))
    return with_types(prompts(blocks, seed=seed, left=left)) | made


def video_inputs(
    model: PreTrainedModel,
    rows: list[list[list[Image.Image]]],
    *,
    seed: int = 0,
    left: bool = True,
    processor: Any = None,
) -> Inputs:
    """Everything that forward and generate take, for videos."""
    blocks, made = video_blocks(rows, processor or Glm4vVideoProcessor(**PATCHES))
    return with_types(prompts(blocks, seed=seed, left=left)) | made
