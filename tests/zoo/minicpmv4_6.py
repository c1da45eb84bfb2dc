"""Tiny MiniCPM-V 4.6: the whole picture first and then slices in rows, marks around each, 16 patches a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import MiniCPMV4_6Config, PreTrainedModel
from transformers.models.minicpmv4_6.image_processing_minicpmv4_6 import MiniCPMV4_6ImageProcessor
from transformers.models.minicpmv4_6.video_processing_minicpmv4_6 import MiniCPMV4_6VideoProcessor

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, TEXT, VIDEO, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(60, 90), (150, 100), (190, 190)]
PLAIN_SIZE = (192, 192)
PLAIN_VIDEO_SIZE = (96, 96)
SCALE = 1.8
SLICE_START, SLICE_END, NEWLINE, NUMBER_START, NUMBER_END = range(MORE, MORE + 5)
SLICING = {"scale_resolution": 96, "patch_size": 8, "max_slice_nums": 6}


def sizes() -> dict[str, Any]:
    """Configuration of a hybrid decoder and of a tower that merges windows of 2 x 2 patches after its second layer."""
    return {
        "text_config": {
            "model_type": "qwen3_5_text",
            **text_sizes(
                num_hidden_layers=6,
                layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
                head_dim=16,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                },
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                linear_num_key_heads=2,
                linear_num_value_heads=4,
            ),
        },
        "vision_config": vision_sizes(image_size=96),
        "insert_layer_id": 1,
        "image_size": 96,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
    }


def config() -> MiniCPMV4_6Config:
    """Two mergers, so that 4 x 4 patches become a token."""
    return MiniCPMV4_6Config(**sizes())


def view(counts: Sequence[int], grid: Sequence[int], token: int) -> list[int]:
    """Token ids of one picture or frame: the whole, then its slices row by row with a newline between rows."""
    ids = [START, *[token] * counts[0], END]
    for number, count in enumerate(counts[1:]):
        if number and number % grid[1] == 0:
            ids.append(NEWLINE)
        ids += [SLICE_START, *[token] * count, SLICE_END]
    return ids


def numbered(block: list[int], number: int) -> list[int]:
    """A block with its number in the row before it."""
    return [NUMBER_START, TEXT[number], NUMBER_END, *block]


def image_blocks(rows: list[list[Image.Image]], made: Any, merged: int) -> list[list[list[int]]]:
    """Token ids of each picture of each row, `merged` patches a token."""
    counts = (made["target_sizes"].prod(-1) // merged).tolist()
    blocks, views, grids = [], iter(made["num_patches_per_image"]), iter(made["grids"])
    for row in rows:
        line = []
        for number in range(len(row)):
            many = int(next(views))
            line.append(numbered(view(counts[:many], next(grids), IMAGE), number))
            counts = counts[many:]
        blocks.append(line)
    return blocks


def video_blocks(rows: list[list[list[Image.Image]]], made: Any, merged: int) -> list[list[list[int]]]:
    """Token ids of each video of each row: frame after frame, each like a picture."""
    counts = (made["target_sizes_videos"].prod(-1) // merged).tolist()
    blocks, lengths, grids = [], iter(made["num_frames_per_video"]), iter(made["grids_videos"].tolist())
    for row in rows:
        line = []
        for _ in row:
            block = []
            for _ in range(int(next(lengths))):
                grid = next(grids)
                many = 1 + grid[0] * grid[1]
                block += view(counts[:many], grid, VIDEO)
                counts = counts[many:]
            line.append(block)
        blocks.append(line)
    return blocks


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    made = MiniCPMV4_6ImageProcessor(**SLICING)(images=pictures, return_tensors="pt")
    asked = prompts(image_blocks(rows, made, 16), seed=seed, left=left)
    return asked | {name: made[name] for name in ("pixel_values", "target_sizes")}


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    videos = [video for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = MiniCPMV4_6VideoProcessor(do_sample_frames=False, **SLICING)
    made = processor(videos=videos, return_tensors="pt")
    blocks = [[numbered(block, number) for number, block in enumerate(line)] for line in video_blocks(rows, made, 16)]
    asked = prompts(blocks, seed=seed, left=left)
    return asked | {name: made[name] for name in ("pixel_values_videos", "target_sizes_videos")}


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """The whole picture, then two by two slices."""
    assert layout.views == 5
    halves = [(row / 2, column / 2, (row + 1) / 2, (column + 1) / 2) for row in range(2) for column in range(2)]
    return [(0.0, 0.0, 1.0, 1.0), *halves]
