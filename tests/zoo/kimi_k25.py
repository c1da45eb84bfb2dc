"""Tiny Kimi K2.5: patches of any resolution, merged 2 x 2; the frames of a chunk of video are averaged."""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import (
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Kimi_K25ImageProcessor,
    Kimi_K25VideoProcessor,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes

SIZES = [(64, 96), (96, 48), (72, 80)]
NO_FRAMES = "the tower averages the frames of a chunk of video, and each chunk counts as a video"
NO_MIXED = None
"""Pictures may stand beside videos all the same."""


def config() -> Kimi_K25Config:
    """One dense and three mixture layers with latent attention."""
    return Kimi_K25Config(
        text_config=text_sizes(
            model_type="deepseek_v3",
            num_key_value_heads=4,
            moe_intermediate_size=48,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=32,
            kv_lora_rank=32,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=16,
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": 8,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        },
        projection_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )


def inputs(
    model: Kimi_K25ForConditionalGeneration, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    made = Kimi_K25ImageProcessor(patch_size=8)(images=pictures, return_tensors="pt")
    counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist())
    blocks = [[[START, MORE, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def video_inputs(
    model: Kimi_K25ForConditionalGeneration, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, of videos."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    made = Kimi_K25VideoProcessor(patch_size=8, temporal_patch_size=4, do_sample_frames=False)(
        videos=videos, return_tensors="pt"
    )
    chunks = iter((made["video_grid_thw"][:, 1:].prod(-1) // 4).tolist())
    counts = iter(map(int, made["num_chunks_per_video"]))
    blocks = [
        [[token for _ in range(next(counts)) for token in (MORE, START, *[VIDEO] * next(chunks), END)] for _ in row]
        for row in rows
    ]
    return prompts(blocks, seed=seed, left=left) | {
        name: made[name] for name in ("pixel_values_videos", "video_grid_thw")
    }
