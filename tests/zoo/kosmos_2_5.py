"""Tiny KOSMOS-2.5: 16 latent queries for a picture of any shape, with ids of the first word; a mask says where."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import Kosmos2_5Config, Kosmos2_5ImageProcessor, PreTrainedModel

from zoo.common import BOS, END, IMAGE, START, Inputs, prompts
from zoo.kosmos_2 import MODEL_CLASS, QUERIES, SIZES, TEXT

__all__ = ["MODEL_CLASS", "MODEL_TYPE", "SIZES", "config", "inputs"]

MODEL_TYPE = "kosmos-2.5"
PATCH, PATCHES = 8, 48


def config() -> Kosmos2_5Config:
    """A decoder with sinusoidal positions and segments; the tower takes up to 48 patches."""
    tower = {
        "hidden_size": 32,
        "patch_embed_hidden_size": 3 * PATCH**2,
        "intermediate_size": 64,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_num_patches": PATCHES,
    }
    return Kosmos2_5Config(text_config=TEXT, vision_config=tower, latent_query_num=QUERIES)


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    made = prompts([[[START, *[IMAGE] * QUERIES, END] for _ in row] for row in rows], seed=seed, left=left)
    places = made["input_ids"] == IMAGE
    marks = torch.isin(made["input_ids"], torch.tensor([START, END]))
    made["image_embeds_position_mask"] = places.long() - marks.long()
    made["input_ids"] = torch.where(places, BOS, made["input_ids"])
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return made
    processor = Kosmos2_5ImageProcessor(patch_size={"height": PATCH, "width": PATCH}, max_patches=PATCHES)
    views = processor(images=pictures, return_tensors="pt")
    return made | {name: views[name] for name in ("flattened_patches", "width", "height")}
