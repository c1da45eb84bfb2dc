"""Tiny Qwen2.5-VL: images as in Qwen2-VL, but all layers of the tower except the last attend in windows."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import PreTrainedModel, Qwen2_5_VLConfig

from zoo import qwen2_vl
from zoo.common import Inputs, text_sizes
from zoo.qwen2_vl import PATCH, SIZES, ids, inputs

__all__ = ["SIZES", "config", "inputs", "video_inputs"]

SECONDS = 0.5
"""Between two pairs of frames."""


def config() -> Qwen2_5_VLConfig:
    """Windows of 3 x 3 visual tokens, which leave ragged edges; full attention in layer 1 of 3."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 6 * PATCH,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(text_config=text_sizes(rope_parameters=rope), vision_config=vision, **ids())


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """As for Qwen2-VL, with the time between frames."""
    made = qwen2_vl.video_inputs(model, rows, seed=seed, left=left)
    return made | {"second_per_grid_ts": torch.full((len(made["video_grid_thw"]),), SECONDS)}
