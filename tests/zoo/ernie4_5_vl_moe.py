"""Tiny ERNIE 4.5 VL: one token per 2 x 2 patches (and per two frames); experts of their own for visual tokens."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import Ernie4_5_VLMoeConfig, PreTrainedModel
from transformers.models.ernie4_5_vl_moe.image_processing_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessor
from transformers.models.ernie4_5_vl_moe.video_processing_ernie4_5_vl_moe import Ernie4_5_VLMoeVideoProcessor

from zoo.common import END, IMAGE, START, VIDEO, Inputs, prompts, text_sizes
from zoo.glm4v import MARKS, PLAIN_SIZE, SIZES, VIDEO_END, VIDEO_START, image_blocks

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "video_inputs"]

PATCHES = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 256 * 120}}


def config() -> Ernie4_5_VLMoeConfig:
    """The tiny configuration."""
    text = text_sizes(
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
        moe_intermediate_size=[48, 32],
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
        tie_word_embeddings=False,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
    )
    del text["attention_dropout"]
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_merge_size": 2,
    }
    return Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **MARKS)


def with_types(text: Inputs) -> Inputs:
    """Prompts and the types of their tokens: for positions, and for experts, where marks count as visual."""
    ids = text["input_ids"]
    images, videos = ids == IMAGE, ids == VIDEO
    image_marks = torch.isin(ids, torch.tensor([START, END]))
    video_marks = torch.isin(ids, torch.tensor([VIDEO_START, VIDEO_END]))
    types = images.long() + 2 * videos.long()
    moe_types = (images | image_marks).long() + 2 * (videos | video_marks).long()
    return text | {"mm_token_type_ids": types, "moe_mm_token_type_ids": moe_types}


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    blocks, made = image_blocks(rows, Ernie4_5_VLMoeImageProcessor(**PATCHES))
    return with_types(prompts(blocks, seed=seed, left=left)) | made


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, for videos; no times drawn on frames, as there is no font."""
    videos = [video for row in rows for video in row]
    processor = Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False, do_sample_frames=False, **PATCHES)
    made = dict(processor(videos, return_tensors="pt")) if videos else {}
    merged = processor.merge_size**2 * processor.temporal_patch_size
    counts = iter((made["video_grid_thw"].prod(-1) // merged).tolist() if videos else [])
    blocks = [[[VIDEO_START, *[VIDEO] * next(counts), VIDEO_END] for _ in row] for row in rows]
    return with_types(prompts(blocks, seed=seed, left=left)) | made
