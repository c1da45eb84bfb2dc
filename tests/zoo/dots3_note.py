"""Tiny Dots 3 Note: patches of any resolution through mixture layers, merged 2 x 2; attention to chosen tokens.

Every query chooses up to `TOPK` keys, more than prompts here have: with fewer, a pruned run is not the same as one in
which tokens are masked after the choice.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import (
    Dots3NoteConfig,
    Dots3NoteForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLVideoProcessor,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes

SIZES = [(64, 96), (96, 48), (80, 80)]
TOPK = 512
LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "head_dim": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}


def config(topk: int = TOPK) -> Dots3NoteConfig:
    """Layers of chosen tokens and sliding ones; in decoder and tower dense and mixture layers."""
    return Dots3NoteConfig(
        text_config=text_sizes(
            layer_types=["indexed_attention", "sliding_attention", "indexed_attention", "sliding_attention"],
            sliding_window=16,
            index_topk=topk,
            index_head_dim=16,
            index_n_heads=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            shared_experts_intermediate_size=48,
            **LATENT,
            **{f"swa_{name}": value for name, value in LATENT.items()},
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": 8,
            "pyramid_num_routed": [-1, 2, 4],
            "adapter_in_dim": 32,
            "adapter_out_dim": 64,
        },
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "feature_size": 16,
            "downsample_hidden_size": 8,
            "adapter_input_size": 32,
            "adapter_out_dim": 64,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=MORE,
    )


def inputs(
    model: Dots3NoteForConditionalGeneration, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = Qwen2VLImageProcessor(
        patch_size=8, temporal_patch_size=1, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    )
    made = processor(images=pictures, return_tensors="pt")
    counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist())
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def video_inputs(
    model: Dots3NoteForConditionalGeneration, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, of videos: tokens of all frames in one run."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = Qwen3VLVideoProcessor(
        patch_size=8,
        temporal_patch_size=1,
        size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128},
        do_sample_frames=False,
    )
    made = processor(videos=videos, return_tensors="pt")
    counts = iter((made["video_grid_thw"].prod(-1) // 4).tolist())
    blocks = [[[START, *[VIDEO] * next(counts), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {
        name: made[name] for name in ("pixel_values_videos", "video_grid_thw")
    }
