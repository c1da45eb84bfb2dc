"""Tiny Qwen2-VL: images of any size become rows of tokens of 2 x 2 patches, videos merge frames in pairs; M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor

from zoo.common import END, IMAGE, START, VIDEO, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (40, 32)]
"""48, 50 and 20 visual tokens."""
PATCH = 4
PIXELS = {"shortest_edge": 16 * 16, "longest_edge": 80 * 80}


def ids() -> dict[str, Any]:
    """The special token ids of a configuration."""
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


def config() -> Qwen2VLConfig:
    """Four layers, sections of M-RoPE for heads of 16."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": PATCH}
    return Qwen2VLConfig(text_config=text_sizes(rope_parameters=rope), vision_config=vision, **ids())


def visual_counts(grids: torch.Tensor) -> list[int]:
    """Visual tokens of each grid of patches."""
    return (grids.prod(-1) // 4).tolist()


def arrange(rows: Sequence[Sequence[object]], blocks: Sequence[list[int]], *, seed: int, left: bool) -> Inputs:
    """Prompts with one block for each picture or video, in the order of the rows, and the kinds of their tokens."""
    rest = iter(blocks)
    made = prompts([[next(rest) for _ in row] for row in rows], seed=seed, left=left)
    tokens = made["input_ids"]
    return made | {"mm_token_type_ids": (tokens == IMAGE).long() + 2 * (tokens == VIDEO).long()}


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return arrange(rows, [], seed=seed, left=left)
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, size=PIXELS)
    pixels = dict(processor(images=pictures, return_tensors="pt"))
    blocks = [[START, *[IMAGE] * count, END] for count in visual_counts(pixels["image_grid_thw"])]
    return arrange(rows, blocks, seed=seed, left=left) | pixels


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, with videos: all frames of one stand between two marks."""
    videos = [video for row in rows for video in row]
    processor = Qwen2VLVideoProcessor(patch_size=PATCH, size=PIXELS, cap_pixels_per_frame=False)
    pixels = dict(processor(videos=videos, do_sample_frames=False, return_tensors="pt"))
    blocks = [[START, *[VIDEO] * count, END] for count in visual_counts(pixels["video_grid_thw"])]
    return arrange(rows, blocks, seed=seed, left=left) | pixels
