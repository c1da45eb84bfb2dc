"""Tiny Nemotron 3 Omni: patches of any resolution, pixel-shuffled 2 x 2; each two frames of a video make one grid."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import (
    NemotronH_Omni_Reasoning_V3,
    NemotronH_Omni_Reasoning_V3_Config,
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    NemotronH_Omni_Reasoning_V3VideoProcessor,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes

SIZES = [(64, 96), (96, 48), (72, 80)]
PLAIN_SIZE = (64, 96)
PLAIN_VIDEO_SIZE = (96, 96)
NO_MIXED = "pictures and videos fill the same placeholders, which the model refuses in one call"


def config() -> NemotronH_Omni_Reasoning_V3_Config:
    """Mamba, mixture, attention and dense layers; a RADIO tower with class and register tokens."""
    text = text_sizes(
        model_type="nemotron_h",
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention"],
        head_dim=16,
        ssm_state_size=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        moe_shared_expert_intermediate_size=48,
    )
    del text["num_hidden_layers"]
    return NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config={
            "model_type": "radio",
            "hidden_size": 32,
            "mlp_ratio": 2.0,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": 8,
            "image_size": 48,
            "max_img_size": 128,
            "num_cls_tokens": 2,
            "num_registers": 2,
            "video_temporal_patch_size": 2,
            "dtype": "float32",
        },
        vision_hidden_size=32,
        projector_hidden_size=64,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=MORE + 1,
    )


def inputs(
    model: NemotronH_Omni_Reasoning_V3, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = NemotronH_Omni_Reasoning_V3ImageProcessor(patch_size=8, min_num_patches=16, max_num_patches=256)
    made = processor(images=pictures, return_tensors="pt")
    counts = iter((made["image_grid_hw"].prod(-1) // 4).tolist())
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | dict(made)


def video_inputs(
    model: NemotronH_Omni_Reasoning_V3, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, of videos: all are stacked, so all get as many frames of one size."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = NemotronH_Omni_Reasoning_V3VideoProcessor(
        patch_size=8,
        video_target_num_patches=64,
        video_maintain_aspect_ratio=False,
        norm_mean=[0.5, 0.5, 0.5],
        norm_std=[0.5, 0.5, 0.5],
        do_sample_frames=False,
    )
    frames = max(map(len, videos))
    made = processor(
        videos=[video[np.linspace(0, len(video) - 1, frames).round().astype(int)] for video in videos],
        return_tensors="pt",
    )
    pixels: torch.Tensor = made["pixel_values_videos"]
    block = [MORE, START, *[IMAGE] * (pixels.shape[-2] * pixels.shape[-1] // 16**2), END] * pixels.shape[1]
    return prompts([[block for _ in row] for row in rows], seed=seed, left=left) | {"pixel_values_videos": pixels}
