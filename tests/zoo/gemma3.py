"""Tiny Gemma 3: a picture is 16 tokens (patches average-pooled 2 x 2), and 16 more for each of its crops."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3TextConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (120, 40), (56, 56)]
PLAIN_SIZE = (64, 128)
NEWLINES = MORE
BEFORE, BETWEEN, SPACE = range(10, 15), range(15, 25), 25
"""Stand for the words that the processor writes before a picture and before its crops, and the space after each."""


class MODEL_CLASS:
    """Makes the model; its projection, which transformers initialises with zeros, gets random weights."""

    @staticmethod
    def from_config(config: Any, **kwargs: Any) -> PreTrainedModel:
        """Return the model of a configuration."""
        model = AutoModelForImageTextToText.from_config(config, **kwargs)
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
        return model


def config() -> Gemma3Config:
    """Return a configuration with sliding windows of 16 tokens in three of four layers."""
    return Gemma3Config(
        text_config=text(),
        vision_config=SiglipVisionConfig(**vision_sizes(image_size=64, vision_use_head=False)),
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )


def text() -> Gemma3TextConfig:
    """Return the decoder's configuration."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(
        **text_sizes(head_dim=16, query_pre_attn_scalar=16, sliding_window=16, layer_types=kinds),
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Return everything that forward and generate take."""
    side = model.config.vision_config.image_size
    processor = Gemma3ImageProcessor(
        size={"height": side, "width": side},
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    pixels, blocks = [], []
    one = [NEWLINES, START, *[IMAGE] * model.config.mm_tokens_per_image, END, NEWLINES]
    for row in rows:
        blocks.append([])
        for picture in row:
            made = processor(picture, return_tensors="pt")
            pixels.append(made["pixel_values"])
            crops = int(made["num_crops"][0])
            rest = [SPACE, *one] * crops
            blocks[-1].append([*BEFORE, SPACE, *one, *BETWEEN, *rest] if crops else one)
    made = prompts(blocks, seed=seed, left=left)
    made["token_type_ids"] = (made["input_ids"] == IMAGE).long()
    return made | ({"pixel_values": torch.cat(pixels)} if pixels else {})


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float] | None]:
    """Return the part of a picture of `PLAIN_SIZE` that each view shows: the whole, then crops side by side."""
    crops = layout.views - 1
    return [(0.0, 0.0, 1.0, 1.0), *((0.0, crop / crops, 1.0, (crop + 1) / crops) for crop in range(crops))]
