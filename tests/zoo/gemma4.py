"""Tiny Gemma 4: pictures of any shape fill at most 70 tokens, each the average of 2 x 2 patches; videos likewise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    Gemma4Config,
    Gemma4ImageProcessor,
    Gemma4TextConfig,
    Gemma4VideoProcessor,
    Gemma4VisionConfig,
    PreTrainedModel,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, VOCAB, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
PLAIN_SIZE = (80, 192)
STAMP = range(20, 25)
"""Stands for the words of a frame's time."""


def text_changes() -> dict[str, Any]:
    """Return what decoders of this family have: layers with windows of 16 tokens, full ones with larger heads."""
    return text_sizes(
        num_hidden_layers=6,
        head_dim=16,
        global_head_dim=32,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 3,
        use_bidirectional_attention="vision",
    )


def config() -> Gemma4Config:
    """Return a configuration with all that checkpoints have: embeddings per layer, shared keys, experts."""
    text = Gemma4TextConfig(
        **text_changes(),
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    )
    return Gemma4Config(
        text_config=text,
        vision_config=vision(),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=MORE,
        boi_token_id=START,
        eoi_token_id=END,
        boa_token_id=MORE + 1,
        eoa_token_index=MORE + 2,
    )


def vision() -> Gemma4VisionConfig:
    """Return the tower's configuration."""
    return Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        patch_size=8,
        pooling_kernel_size=2,
        position_embedding_size=512,
    )


def sizes(model: PreTrainedModel) -> dict[str, int]:
    """Return the arguments of the processors."""
    tower = model.config.vision_config
    return {
        "patch_size": tower.patch_size,
        "pooling_kernel_size": tower.pooling_kernel_size,
        "max_soft_tokens": 70,
    }


def kinds(made: Inputs) -> Inputs:
    """Return prompts with the kind of each token added."""
    ids = made["input_ids"]
    return made | {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Return everything that forward and generate take."""
    return image_prompts(Gemma4ImageProcessor(**sizes(model)), rows, seed=seed, left=left)


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Return everything that forward and generate take."""
    return video_prompts(Gemma4VideoProcessor(**sizes(model), do_sample_frames=False), rows, seed=seed, left=left)


def image_prompts(processor: Any, rows: list[list[Image.Image]], *, seed: int, left: bool) -> Inputs:
    """Return prompts and what a processor makes of their pictures."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return kinds(prompts([[] for _ in rows], seed=seed, left=left))
    made = processor(pictures, return_tensors="pt")
    counts = iter(made["num_soft_tokens_per_image"].tolist())
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    pixels = {name: made[name] for name in ("pixel_values", "image_position_ids")}
    return kinds(prompts(blocks, seed=seed, left=left)) | pixels


def video_prompts(processor: Any, rows: list[list[list[Image.Image]]], *, seed: int, left: bool) -> Inputs:
    """Return prompts and what a processor makes of their videos."""
    videos = [torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) for row in rows for frames in row]
    if not videos:
        return kinds(prompts([[] for _ in rows], seed=seed, left=left))
    made = processor(videos, return_tensors="pt")
    counts = iter(made["num_soft_tokens_per_video"].tolist())
    blocks = [[[*STAMP, START, *[VIDEO] * next(counts), END] * len(frames) for frames in row] for row in rows]
    pixels = {name: made[name] for name in ("pixel_values_videos", "video_position_ids", "num_frames_per_video")}
    return kinds(prompts(blocks, seed=seed, left=left)) | pixels
