"""Tiny Qwen3-VL: as Qwen2-VL, with features of two tower layers added after decoder layers 0 and 1 (deepstack)."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import PreTrainedModel, Qwen3VLConfig, Qwen3VLVideoProcessor

from zoo.common import END, START, VIDEO, Inputs, text_sizes
from zoo.qwen2_vl import PATCH, PIXELS, SIZES, arrange, ids, inputs

__all__ = ["SIZES", "config", "deepstack_vision", "inputs", "rope", "video_inputs", "vision"]

STAMP = [7, 8]
"""Words that stand for the time of a frame."""


def rope(**changes: Any) -> dict[str, Any]:
    """Interleaved M-RoPE for heads of 16."""
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    } | changes


def vision(**changes: Any) -> dict[str, Any]:
    """Sizes of the tower; positions are learned on a grid of 6 x 6."""
    return {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": PATCH,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
    } | changes


def deepstack_vision() -> dict[str, Any]:
    """Sizes of a tower that hands on the output of its first two layers."""
    return vision(deepstack_visual_indexes=[0, 1])


def config() -> Qwen3VLConfig:
    """Four layers, the first two of which take features of the tower."""
    text = text_sizes(rope_parameters=rope(), head_dim=16)
    return Qwen3VLConfig(text_config=text, vision_config=deepstack_vision(), **ids())


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, with videos: each pair of frames has a time and marks of its own."""
    videos = [video for row in rows for video in row]
    processor = Qwen3VLVideoProcessor(
        patch_size=PATCH,
        size={edge: pixels * 4 for edge, pixels in PIXELS.items()},
        cap_pixels_per_frame=False,
    )
    pixels = dict(processor(videos=videos, do_sample_frames=False, return_tensors="pt"))
    blocks = [
        [START, *([*STAMP, START, *[VIDEO] * (height * width // 4), END] * pairs), END]
        for pairs, height, width in pixels["video_grid_thw"].tolist()
    ]
    return arrange(rows, blocks, seed=seed, left=left) | pixels
