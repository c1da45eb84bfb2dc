"""Tiny Llama 4: tiles of 9 tokens after pixel shuffle, marks between tiles, a thumbnail last."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Llama4Config,
    Llama4ImageProcessor,
    Llama4TextConfig,
    Llama4VisionConfig,
    PreTrainedModel,
)

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(44, 40), (80, 40), (150, 44)]
PLAIN_SIZE = (96, 96)
BESIDE, BELOW, WHOLE = MORE, MORE + 1, MORE + 2


class MODEL_CLASS:
    """Makes the model; transformers 5.24 reads `image_outputs` off the text model's output, which has none."""

    @staticmethod
    def from_config(config: Any, **kwargs: Any) -> PreTrainedModel:
        """Return the model of a configuration, with the attribute supplied after each call of its text model."""
        model = AutoModelForImageTextToText.from_config(config, **kwargs)
        model.language_model.register_forward_hook(lambda module, given, out: setattr(out, "image_outputs", None))
        return model


def config() -> Llama4Config:
    """Return a configuration with chunks of 16 tokens in three of four layers, and experts in two."""
    text = Llama4TextConfig(
        **text_sizes(head_dim=16),
        intermediate_size_mlp=96,
        num_local_experts=4,
        num_experts_per_tok=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=16,
        no_rope_layers=[1, 1, 0, 1],
    )
    vision = Llama4VisionConfig(
        **vision_sizes(intermediate_size=128),
        vision_output_dim=48,
        projector_input_dim=48,
        projector_output_dim=48,
    )
    return Llama4Config(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )


NOTE = (
    "transformers 5.24 fails in every forward of this type by itself (it reads `image_outputs` off an output without "
    "it); the model tested here has that attribute supplied"
)


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Return everything that forward and generate take."""
    sizes = model.config.vision_config
    processor = Llama4ImageProcessor(size={"height": sizes.image_size, "width": sizes.image_size}, max_patches=4)
    tile = [IMAGE] * int((sizes.image_size // sizes.patch_size) ** 2 * sizes.pixel_shuffle_ratio**2)
    pixels, blocks = [], []
    for row in rows:
        blocks.append([])
        for picture in row:
            made = processor(picture, return_tensors="pt")
            pixels.append(made["pixel_values"].flatten(0, -4).float())
            height, width = made["aspect_ratios"].flatten().tolist()
            line = [*([*tile, BESIDE] * width)[:-1], BELOW]
            tiles = line * height if height * width > 1 else []
            blocks[-1].append([START, *tiles, WHOLE, *tile, END])
    return prompts(blocks, seed=seed, left=left) | ({"pixel_values": torch.cat(pixels)} if pixels else {})


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float] | None]:
    """Return the part of a picture of `PLAIN_SIZE` that each view shows: four tiles, then the whole."""
    tiles = [(row / 2, column / 2, (row + 1) / 2, (column + 1) / 2) for row in range(2) for column in range(2)]
    return [*tiles, (0.0, 0.0, 1.0, 1.0)]
