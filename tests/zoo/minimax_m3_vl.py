"""Tiny MiniMax M3: patches of any resolution, merged 2 x 2; sparse layers look at a few blocks of keys.

Here they look at up to `TOPK` blocks, more than prompts have: with fewer, removed tokens leave other blocks behind, and
a pruned run is not the same as one in which tokens are masked.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import (
    MiniMaxM3SparseForConditionalGeneration,
    MiniMaxM3VLConfig,
    MiniMaxM3VLImageProcessor,
    MiniMaxM3VLVideoProcessor,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes, vision_sizes

UNEQUAL_FRAMES = "attention of the tower runs over all frames of a video"
SIZES = [(64, 96), (96, 48), (80, 80)]
TOPK = 64


def config(topk: int = TOPK) -> MiniMaxM3VLConfig:
    """Full and block-sparse attention, dense and mixture layers."""
    text = text_sizes(
        head_dim=16,
        rotary_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        intermediate_size=48,
        dense_intermediate_size=96,
        shared_intermediate_size=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["full_attention", "minimax_m3_sparse", "full_attention", "minimax_m3_sparse"],
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        index_n_heads=2,
        index_head_dim=16,
        index_block_size=16,
        index_topk_blocks=topk,
    )
    return MiniMaxM3VLConfig(
        text_config=text,
        vision_config=vision_sizes(attention_dropout=0.0),
        projector_hidden_size=64,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )


def inputs(
    model: MiniMaxM3SparseForConditionalGeneration, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = MiniMaxM3VLImageProcessor(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128})
    made = processor(images=pictures, return_tensors="pt")
    counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist())
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def video_inputs(
    model: MiniMaxM3SparseForConditionalGeneration,
    rows: list[list[list[Image.Image]]],
    *,
    seed: int = 0,
    left: bool = True,
) -> Inputs:
    """Everything that forward and generate take, of videos: of each one segment, which is pruned as a video."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = MiniMaxM3VLVideoProcessor(
        patch_size=8,
        min_pixels=32 * 32,
        max_pixels=128 * 128,
        vision_segment_max_frames=8,
        do_sample_frames=False,
        do_resize=True,
    )
    made = processor(videos=videos, return_tensors="pt")
    chunks = iter(made["video_grid_thw"].tolist())

    def block(parts: int) -> list[int]:
        grids = [next(chunks) for _ in range(parts)]
        return [
            token
            for frames, height, width in grids
            for token in [MORE, START, *[VIDEO] * (height * width // 4), END] * frames
        ]

    counts = iter(map(int, made["num_chunks_per_video"]))
    blocks = [[block(next(counts)) for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {
        name: made[name] for name in ("pixel_values_videos", "video_grid_thw")
    }
