"""Tiny Molmo 2: a low-resolution view, then overlapping crops, 2 x 2 patches pooled, a mark after each row."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import Molmo2Config, Molmo2ForConditionalGeneration, Molmo2ImageProcessor, Molmo2VideoProcessor

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, TEXT, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (112, 48), (48, 48)]
NO_MIXED = "the model refuses pictures and videos in one call"
PLAIN_SIZE = (240, 240)
LOW, COLUMN, FRAME_START, FRAME_END = range(MORE, MORE + 4)
MARKS = (IMAGE, START, END, LOW, COLUMN, FRAME_START, FRAME_END)


def config() -> Molmo2Config:
    """Layers with scaled and unscaled rotations; features of two layers of the tower; video tokens are image tokens."""
    text = text_sizes(
        head_dim=16,
        additional_vocab_size=0,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        rope_scaling_layers=[1, 3],
    )
    return Molmo2Config(
        text_config=text,
        vision_config=vision_sizes(image_size=[48, 48], num_key_value_heads=2, head_dim=16),
        adapter_config={
            "vision_feature_layer": [2, 0],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "text_hidden_size": 64,
            "initializer_range": 0.2,
        },
        image_start_token_id=START,
        image_end_token_id=END,
        image_patch_id=IMAGE,
        low_res_image_start_token_id=LOW,
        frame_start_token_id=FRAME_START,
        frame_end_token_id=FRAME_END,
    )


def _typed(made: Inputs) -> Inputs:
    """Adds the token types: image marks count as image tokens."""
    types = torch.isin(made["input_ids"], torch.tensor(MARKS)).long()
    return made | {"mm_token_type_ids": types}


def inputs(
    model: Molmo2ForConditionalGeneration, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return _typed(prompts([[] for _ in rows], seed=seed, left=left))
    processor = Molmo2ImageProcessor(
        size={"height": 48, "width": 48}, patch_size=8, max_crops=4, overlap_margins=[1, 1], pooling_size=[2, 2]
    )
    made = processor(images=pictures, return_tensors="pt")
    grids = iter(made["image_grids"].tolist())

    def block(low_height: int, low_width: int, height: int, width: int) -> list[int]:
        low = [LOW, *([IMAGE] * low_width + [COLUMN]) * low_height, END]
        return [*low, START, *([IMAGE] * width + [COLUMN]) * height, END]

    blocks = [[block(*next(grids)) for _ in row] for row in rows]
    return _typed(prompts(blocks, seed=seed, left=left)) | dict(made)


def video_inputs(
    model: Molmo2ForConditionalGeneration, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, of videos."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return _typed(prompts([[] for _ in rows], seed=seed, left=left))
    processor = Molmo2VideoProcessor(
        size={"height": 48, "width": 48},
        patch_size=8,
        pooling_size=[3, 3],
        do_sample_frames=False,
        do_rescale=True,
        do_normalize=True,
    )
    made = processor(videos=videos, return_tensors="pt")
    grids = iter(made["video_grids"].tolist())

    def block(frames: int, height: int, width: int) -> list[int]:
        return [
            token
            for frame in range(frames)
            for token in (TEXT[frame], FRAME_START, *[IMAGE] * (height * width), FRAME_END)
        ]

    blocks = [[block(*next(grids)) for _ in row] for row in rows]
    names = ("pixel_values_videos", "video_token_pooling", "video_grids")
    return _typed(prompts(blocks, seed=seed, left=left)) | {name: made[name] for name in names}


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """The whole picture in low and in high resolution."""
    return [(0.0, 0.0, 1.0, 1.0)] * layout.views
