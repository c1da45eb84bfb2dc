"""Tiny EXAONE 4.5: any size of picture, a tower with windows, one token per 2 x 2 patches, plain positions."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import Exaone4_5_Config, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from zoo.common import END, IMAGE, START, VIDEO, Inputs, prompts, text_sizes
from zoo.glm4v import PATCHES, SIZES, image_blocks

__all__ = ["SIZES", "config", "inputs", "tower", "video_inputs"]


def tower(**changes: Any) -> dict[str, Any]:
    """Sizes of the vision tower: windows of 2 x 2 merged patches in all layers but the second."""
    return {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 64,
    } | changes


def config() -> Exaone4_5_Config:
    """The tiny configuration."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = text_sizes(model_type="exaone4", rope_parameters=rope, sliding_window=16, sliding_window_pattern=2)
    return Exaone4_5_Config(
        text_config=text, vision_config=tower(num_key_value_heads=1), image_token_id=IMAGE, video_token_id=VIDEO
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    blocks, made = image_blocks(rows, Qwen2VLImageProcessor(**PATCHES))
    return prompts(blocks, seed=seed, left=left) | made


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, for videos: all frames in one block."""
    videos = [video for row in rows for video in row]
    processor = Qwen2VLVideoProcessor(**PATCHES)
    made = dict(processor(videos, return_tensors="pt", do_sample_frames=False)) if videos else {}
    counts = iter((made["video_grid_thw"].prod(-1) // processor.merge_size**2).tolist() if videos else [])
    blocks = [[[START, *[VIDEO] * next(counts), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | made
