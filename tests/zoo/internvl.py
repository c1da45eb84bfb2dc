"""Tiny InternVL: tiles of 16 tokens after pixel shuffle, a thumbnail last; frames of videos are single tiles."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
TILE, TOKENS = 64, 16
PLAIN_SIZE = (TILE, 2 * TILE)
NO_FRAMES = "its frames are pictures with words between, as several pictures are: nothing tells a video"


def config() -> InternVLConfig:
    """A tiny configuration."""
    return InternVLConfig(
        vision_config=InternVLVisionConfig(**vision_sizes(image_size=TILE)),
        text_config=Qwen2Config(**text_sizes()),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """Of a picture of `PLAIN_SIZE` the left and the right tile, and the thumbnail."""
    assert layout.views == 3
    return [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]


class Maker:
    """Makes models of a class with random embeddings of positions: as initialised they are zero."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def _from_config(self, config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
        """The model with random weights."""
        model: PreTrainedModel = self.made._from_config(config, attn_implementation=attn_implementation)
        torch.nn.init.normal_(model.get_parameter("model.vision_tower.embeddings.position_embeddings"), std=0.1)
        return model


MODEL_CLASS = Maker(InternVLForConditionalGeneration)


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts(rows, seed=seed, left=left)
    processor = GotOcr2ImageProcessor(size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=6)
    made = processor(pictures, return_tensors="pt")
    tiles = iter(made["num_patches"].tolist())
    blocks = [[[START, *[IMAGE] * (TOKENS * next(tiles)), END] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {"pixel_values": made["pixel_values"]}


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """The same with videos, whose frames are pictures to the model."""
    videos = [frames for row in rows for frames in row]
    if not videos:
        return prompts(rows, seed=seed, left=left)
    processor = InternVLVideoProcessor(size={"height": TILE, "width": TILE})
    pixels = torch.cat([processor([frames], return_tensors="pt")["pixel_values_videos"][0] for frames in videos])
    frame = [MORE, START, *[IMAGE] * TOKENS, END]
    blocks = [[frame * len(frames) for frames in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {"pixel_values": pixels}
