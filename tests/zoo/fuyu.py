"""Tiny Fuyu: raw patches of the picture, projected without a tower, a newline mark after each row of patches."""

from __future__ import annotations

import inspect
import math

import torch
from PIL import Image
from transformers import FuyuConfig, FuyuForCausalLM, FuyuImageProcessor

from zoo.common import BOS, IMAGE, MORE, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 72)]
PATCH = 8
NEWLINE = MORE


def config() -> FuyuConfig:
    """Four Persimmon layers."""
    text = text_sizes()
    del text["num_key_value_heads"]
    return FuyuConfig(
        image_size=96,
        patch_size=PATCH,
        image_token_id=IMAGE,
        pad_token_id=text["pad_token_id"],
        bos_token_id=text["bos_token_id"],
        eos_token_id=text["eos_token_id"],
        text_config={"model_type": "persimmon", "hidden_dropout": 0.0, **text},
    )


def inputs(model: FuyuForCausalLM, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    processor = FuyuImageProcessor(size={"height": 96, "width": 96}, patch_size={"height": PATCH, "width": PATCH})
    patches = []
    blocks: list[list[list[int]]] = []
    for row in rows:
        blocks.append([])
        for picture in row:
            processed = processor(images=[picture], return_tensors="pt")
            height, width = (
                math.ceil(processed[name][0][0] / PATCH) for name in ("image_unpadded_heights", "image_unpadded_widths")
            )
            image = processed["images"][0][..., : height * PATCH, : width * PATCH]
            patches.append(processor.patchify_image(image)[0])
            blocks[-1].append(([IMAGE] * width + [NEWLINE]) * height + [BOS])
    made = prompts(blocks, seed=seed, left=left)
    if patches:
        # Releases differ in the name.
        known = inspect.signature(model.forward).parameters
        made["pixel_values" if "pixel_values" in known else "image_patches"] = torch.cat(patches)
    return made
