"""Tiny Cosmos3-Edge: packed SigLIP2 patches, merged 2 x 2 by a projector outside the tower; M-RoPE."""

from __future__ import annotations

from PIL import Image
from transformers import Cosmos3EdgeConfig, Cosmos3EdgeImageProcessorPil, Cosmos3EdgeVideoProcessor, PreTrainedModel

from zoo.common import END, IMAGE, START, VIDEO, Inputs, text_sizes, vision_sizes
from zoo.qwen2_vl import PATCH, PIXELS, SIZES, arrange, ids, visual_counts
from zoo.qwen3_vl import STAMP, rope

__all__ = ["SIZES", "config", "inputs", "video_inputs"]


def config() -> Cosmos3EdgeConfig:
    """Four layers; positions of patches are learned on a grid of 6 x 6."""
    vision = vision_sizes(patch_size=PATCH, num_patches=36)
    del vision["image_size"]
    parameters = rope()
    del parameters["mrope_interleaved"]
    text = text_sizes(rope_parameters=parameters, head_dim=16)
    return Cosmos3EdgeConfig(text_config=text, vision_config=vision, projector_hidden_size=96, **ids())


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return arrange(rows, [], seed=seed, left=left)
    processor = Cosmos3EdgeImageProcessorPil(patch_size=PATCH, size=PIXELS)
    pixels = dict(processor(images=pictures, return_tensors="pt"))
    blocks = [[START, *[IMAGE] * count, END] for count in visual_counts(pixels["image_grid_thw"])]
    return arrange(rows, blocks, seed=seed, left=left) | pixels


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, with videos: each frame has a time and marks of its own."""
    videos = [video for row in rows for video in row]
    processor = Cosmos3EdgeVideoProcessor(patch_size=PATCH, size={edge: pixels * 4 for edge, pixels in PIXELS.items()})
    pixels = dict(processor(videos=videos, do_sample_frames=False, return_tensors="pt"))
    blocks = [
        [*STAMP, START, *[VIDEO] * (height * width // 4), END] * frames
        for frames, height, width in pixels["video_grid_thw"].tolist()
    ]
    return arrange(rows, blocks, seed=seed, left=left) | pixels
