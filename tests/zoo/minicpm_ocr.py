"""Tiny MiniCPM-OCR: pictures of MiniCPM-V 4.6, 4 patches a token, as the merger inside of the tower is left out."""

from __future__ import annotations

from PIL import Image
from transformers import MiniCPMOcrConfig, PreTrainedModel
from transformers.models.minicpm_ocr.image_processing_minicpm_ocr import MiniCPMOcrImageProcessor
from transformers.models.minicpm_ocr.video_processing_minicpm_ocr import MiniCPMOcrVideoProcessor

from zoo.common import Inputs, prompts
from zoo.minicpmv4_6 import image_blocks, numbered, sizes, video_blocks, view_boxes

__all__ = ["config", "inputs", "video_inputs", "view_boxes"]

SIZES = [(60, 90), (100, 80), (125, 125)]
PLAIN_SIZE = (128, 128)
PLAIN_VIDEO_SIZE = (64, 64)
SCALE = 2.0
SLICING = {"scale_resolution": 64, "patch_size": 8, "max_slice_nums": 6}


def config() -> MiniCPMOcrConfig:
    """The sizes of MiniCPM-V 4.6 without a size of pictures; 2 x 2 patches become a token."""
    return MiniCPMOcrConfig(**{name: value for name, value in sizes().items() if name != "image_size"})


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    made = MiniCPMOcrImageProcessor(**SLICING)(images=pictures, return_tensors="pt")
    asked = prompts(image_blocks(rows, made, 4), seed=seed, left=left)
    return asked | {name: made[name] for name in ("pixel_values", "target_sizes")}


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    videos = [video for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    made = MiniCPMOcrVideoProcessor(do_sample_frames=False, **SLICING)(videos=videos, return_tensors="pt")
    blocks = [[numbered(block, number) for number, block in enumerate(line)] for line in video_blocks(rows, made, 4)]
    asked = prompts(blocks, seed=seed, left=left)
    return asked | {name: made[name] for name in ("pixel_values_videos", "target_sizes_videos")}
