"""Tiny Step 3.7: local crops of 9 tokens, marks around each and after a row of them; the whole picture of 16 last."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import PreTrainedModel, Step3p7Config
from transformers.models.step3p7.image_processing_step3p7 import Step3p7ImageProcessor

from vtprune.layout import ImageLayout
from zoo.common import END, IMAGE, MORE, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(128, 128), (80, 40), (200, 180)]
PLAIN_SIZE = (192, 192)
CROP_START, CROP_END, NEWLINE = MORE, MORE + 1, MORE + 2
WHOLE, CROP = 16, 9


def config() -> Step3p7Config:
    """A tower with two strided convolutions at its end; a decoder of sliding and full, dense and sparse layers."""
    return Step3p7Config(
        text_config=text_sizes(
            head_dim=16,
            layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
            sliding_window=16,
            num_sliding_attention_heads=6,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            share_expert_dim=48,
            rope_theta=[10000.0, 1000.0, 1000.0, 10000.0],
            partial_rotary_factors=[0.5, 1.0, 1.0, 0.5],
        ),
        vision_config=vision_sizes(image_size=128, mlp_ratio=2.0, layer_scale_init_value=0.5),
        image_token_id=IMAGE,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = Step3p7ImageProcessor(
        size={"height": 128, "width": 128}, patch_size=96, max_image_size=512, vision_patch_size=8
    )
    made = processor(images=pictures, return_tensors="pt")
    blocks = []
    for number, crops in enumerate(made["num_local_patches"].tolist()):
        block = []
        for crop in range(crops):
            block += [CROP_START, *[IMAGE] * CROP, CROP_END]
            if made["patch_newline_masks"][number][crop]:
                block.append(NEWLINE)
        blocks.append([*block, START, *[IMAGE] * WHOLE, END])
    order = iter(blocks)
    asked = prompts([[next(order) for _ in row] for row in rows], seed=seed, left=left)
    names = ("pixel_values", "pixel_values_local", "num_local_patches")
    return asked | {name: torch.as_tensor(made[name]) for name in names if name in made}


def view_boxes(layout: ImageLayout) -> list[tuple[float, float, float, float]]:
    """Two by two crops, then the whole picture."""
    assert layout.views == 5
    halves = [(row / 2, column / 2, (row + 1) / 2, (column + 1) / 2) for row in range(2) for column in range(2)]
    return [*halves, (0.0, 0.0, 1.0, 1.0)]
