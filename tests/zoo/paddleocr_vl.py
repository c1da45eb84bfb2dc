"""Tiny PaddleOCR-VL: any size of picture, patches in raster order, 2 x 2 of them merged by the projector."""

from __future__ import annotations

from PIL import Image
from transformers import PaddleOCRVLConfig, PreTrainedModel
from transformers.models.paddleocr_vl.image_processing_paddleocr_vl import PaddleOCRVLImageProcessor

from zoo.common import END, IMAGE, START, VIDEO, Inputs, prompts, text_sizes, vision_sizes
from zoo.glm4v import PLAIN_SIZE, SIZES, image_blocks

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs"]

PATCHES = {
    "patch_size": 8,
    "temporal_patch_size": 1,
    "merge_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 256 * 120},
}


def config() -> PaddleOCRVLConfig:
    """The tiny configuration."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = text_sizes(rope_parameters=rope, head_dim=16, tie_word_embeddings=False)
    del text["attention_dropout"]
    return PaddleOCRVLConfig(
        text_config=text,
        vision_config=vision_sizes(spatial_merge_size=2),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    blocks, made = image_blocks(rows, PaddleOCRVLImageProcessor(**PATCHES))
    text = prompts(blocks, seed=seed, left=left)
    return text | {"mm_token_type_ids": (text["input_ids"] == IMAGE).long()} | made
