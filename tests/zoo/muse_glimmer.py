"""Tiny Muse Glimmer: patches of any resolution in windows, pixel-shuffled 2 x 2; some layers without rotations."""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import (
    MuseGlimmerConfig,
    MuseGlimmerImageProcessor,
    MuseGlimmerVideoProcessor,
    PreTrainedModel,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes

SIZES = [(64, 96), (96, 48), (80, 80)]
PLAIN_SIZE = (64, 96)
VIDEO_START, VIDEO_END, SEPARATOR, TIME = range(MORE, MORE + 4)
VISION = {
    "patch_size": 8,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "max_position_embeddings": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
}


def config() -> MuseGlimmerConfig:
    """Three sliding layers, then a full one without rotations; a tower of two window layers and a full one."""
    return MuseGlimmerConfig(
        text_config=text_sizes(head_dim=16, sliding_window=16, output_multiplier=1.0),
        vision_config=VISION,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        out_hidden_size=128,
        projector_hidden_size=64,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    made = MuseGlimmerImageProcessor(patch_size=8, max_image_tokens=64)(images=pictures, return_tensors="pt")
    counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist())
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, of videos."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = MuseGlimmerVideoProcessor(patch_size=8, max_video_frame_tokens=32, do_sample_frames=False)
    made = processor(videos=videos, return_tensors="pt")
    grids = iter(made["video_grid_thw"].tolist())

    def block(frames: int, height: int, width: int) -> list[int]:
        marked = [TIME, *[VIDEO] * (height * width // 4), SEPARATOR] * frames
        return [VIDEO_START, *marked[:-1], VIDEO_END]

    blocks = [[block(*next(grids)) for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {
        name: made[name] for name in ("pixel_values_videos", "video_grid_thw")
    }
