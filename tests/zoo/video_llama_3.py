"""Tiny VideoLLaMA 3: patches of any resolution, one token each; of videos 2 x 2 patches of a frame make a token."""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import (
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3VideoProcessor,
)

from zoo.common import IMAGE, MORE, VIDEO, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 72)]


def config() -> VideoLlama3Config:
    """Four Qwen2 layers."""
    vision = vision_sizes(attention_dropout=0.0)
    del vision["image_size"]
    return VideoLlama3Config(
        text_config=text_sizes(model_type="qwen2"),
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def inputs(
    model: VideoLlama3ForConditionalGeneration, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = VideoLlama3ImageProcessor(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96})
    made = processor(images=pictures, return_tensors="pt")
    counts = iter((made["image_grid_thw"].prod(-1) // made["image_merge_sizes"] ** 2).tolist())
    blocks = [[[IMAGE] * next(counts) for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | dict(made)


def video_inputs(
    model: VideoLlama3ForConditionalGeneration,
    rows: list[list[list[Image.Image]]],
    *,
    seed: int = 0,
    left: bool = True,
    compression: bool = False,
) -> Inputs:
    """Everything that forward and generate take, of videos; with `compression` tokens that hardly change go."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = VideoLlama3VideoProcessor(
        patch_size=8,
        merge_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 6 * 96 * 96},
        do_sample_frames=False,
        use_token_compression=compression,
    )
    made = processor(videos=videos, return_tensors="pt")
    grids, merges = made["video_grid_thw"], made["video_merge_sizes"]
    masks = iter(made["video_compression_mask"].split((grids.prod(-1) // merges**2).tolist()))
    frames = iter(grids[:, 0].tolist())
    blocks = [
        [
            [token for kept in next(masks).view(next(frames), -1).sum(-1).tolist() for token in (MORE, *[VIDEO] * kept)]
            for _ in row
        ]
        for row in rows
    ]
    names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask")
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in names}
