"""Tiny MiniCPM-V 4.7: pictures of MiniCPM-V 4.6, whose slices share one canvas of three-dimensional positions."""

from __future__ import annotations

from PIL import Image
from transformers import MiniCPMV4_7Config, PreTrainedModel

from zoo import minicpmv4_6 as before
from zoo.common import END, IMAGE, START, VIDEO, Inputs, prompts

SIZES = before.SIZES
PLAIN_SIZE = before.PLAIN_SIZE
PLAIN_VIDEO_SIZE = before.PLAIN_VIDEO_SIZE
view_boxes = before.view_boxes
SCALE = 2.0


def config() -> MiniCPMV4_7Config:
    """The sizes of MiniCPM-V 4.6; positions hang on the ids of the marks."""
    return MiniCPMV4_7Config(
        **before.sizes(),
        image_start_id=START,
        image_end_id=END,
        slice_start_id=before.SLICE_START,
        slice_end_id=before.SLICE_END,
        newline_id=before.NEWLINE,
    )


def typed(asked: Inputs) -> Inputs:
    """Inputs with the kind of each token: 0 words, 1 images, 2 videos."""
    ids = asked["input_ids"]
    return asked | {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    return typed(before.inputs(model, rows, seed=seed, left=left))


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take; videos have no numbers before them."""
    videos = [video for row in rows for video in row]
    if not videos:
        return typed(prompts([[] for _ in rows], seed=seed, left=left))
    processor = before.MiniCPMV4_6VideoProcessor(do_sample_frames=False, **before.SLICING)
    made = processor(videos=videos, return_tensors="pt")
    asked = typed(prompts(before.video_blocks(rows, made, 16), seed=seed, left=left))
    return asked | {name: made[name] for name in ("pixel_values_videos", "target_sizes_videos")}
