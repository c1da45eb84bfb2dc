"""Tiny Aria: crops of 490 x 490, each 16 tokens from a cross-attention projector."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import AriaConfig, AriaForConditionalGeneration, AriaImageProcessor

from zoo.common import IMAGE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(490, 900), (900, 900), (1400, 450)]
QUERIES = 16
NO_PLACES = "tokens are queries that attend to all patches of a crop"


def config() -> AriaConfig:
    """Four mixture layers, a tower of 7 x 7 patches."""
    return AriaConfig(
        text_config=text_sizes(model_type="aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        vision_config=vision_sizes(model_type="idefics3_vision", image_size=490, patch_size=70, attention_dropout=0.0),
        projector_patch_to_query_dict={49: QUERIES},
        image_token_index=IMAGE,
    )


def inputs(
    model: AriaForConditionalGeneration, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    processor = AriaImageProcessor(max_image_size=490, min_image_size=210, split_image=True)
    crops = [[processor(images=[picture], return_tensors="pt") for picture in row] for row in rows]
    made = prompts(
        [[[IMAGE] * (QUERIES * len(crop["pixel_values"])) for crop in row] for row in crops], seed=seed, left=left
    )
    flat = [crop for row in crops for crop in row]
    if flat:
        made["pixel_values"] = torch.cat([crop["pixel_values"] for crop in flat])
        made["pixel_mask"] = torch.cat([crop["pixel_mask"] for crop in flat])
    return made
