"""Tiny PP-Chart2Table: GOT-OCR2's classes without tiles, 16 tokens a picture."""

from __future__ import annotations

from PIL import Image
from transformers import PPChart2TableConfig, PPChart2TableImageProcessor, PreTrainedModel, Qwen2Config
from transformers.models.pp_chart2table.configuration_pp_chart2table import PPChart2TableVisionConfig

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, START, Inputs, prompts, text_sizes
from zoo.got_ocr2 import EARLY, MODEL_CLASS, SIZES, TILE, TOKENS, tower_sizes

__all__ = ["MODEL_CLASS", "SIZES", "config", "inputs", "view_boxes"]


def config() -> PPChart2TableConfig:
    """A tiny configuration."""
    return PPChart2TableConfig(
        vision_config=PPChart2TableVisionConfig(**tower_sizes()),
        text_config=Qwen2Config(**text_sizes()),
        image_token_index=IMAGE,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """The picture, as GOT-OCR2 places it."""
    return [(-EARLY, -EARLY, 1.0 - EARLY, 1.0 - EARLY)]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts(rows, seed=seed, left=left)
    made = PPChart2TableImageProcessor(size={"height": TILE, "width": TILE})(pictures, return_tensors="pt")
    blocks = [[[START, *[IMAGE] * TOKENS, END]] * len(row) for row in rows]
    return prompts(blocks, seed=seed, left=left) | {"pixel_values": made["pixel_values"]}
