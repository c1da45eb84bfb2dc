"""Tiny HunYuan-VL: one token per 2 x 2 patches, a newline token after each row, a begin and an end token."""

from __future__ import annotations

from PIL import Image
from transformers import HunYuanVLConfig, PreTrainedModel
from transformers.models.hunyuan_vl.image_processing_hunyuan_vl import HunYuanVLImageProcessor

from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes
from zoo.glm4v import PLAIN_SIZE, SIZES

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs"]

PATCHES = {
    "patch_size": 8,
    "temporal_patch_size": 1,
    "merge_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 256 * 120},
}


def config() -> HunYuanVLConfig:
    """The tiny configuration; sections of the rotary embedding are for order, width, height and picture."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 10.0, "factor": 1.0, "mrope_section": [2, 2, 2, 2]}
    vision = vision_sizes(max_image_size=48, out_hidden_size=64)
    del vision["image_size"]
    return HunYuanVLConfig(
        text_config=text_sizes(head_dim=16, rope_parameters=rope, tie_word_embeddings=False),
        vision_config=vision,
        image_token_id=IMAGE,
        im_start_id=START,
        im_end_id=END,
        im_newline_id=MORE,
        tie_word_embeddings=False,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    processor = HunYuanVLImageProcessor(**PATCHES)
    made = dict(processor(pictures, return_tensors="pt")) if pictures else {}
    grids = iter((made["image_grid_thw"][:, 1:] // processor.merge_size).tolist() if pictures else [])
    counts = (height * (width + 1) + 2 for height, width in grids)
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    text = prompts(blocks, seed=seed, left=left)
    return text | {"mm_token_type_ids": (text["input_ids"] == IMAGE).long()} | made
