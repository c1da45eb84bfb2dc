"""Tiny PaliGemma: every picture is 36 tokens, one per patch; the whole prompt attends to itself in both directions."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from zoo.common import BOS, IMAGE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]


def config() -> PaliGemmaConfig:
    """Return a configuration with a SigLIP tower and a Gemma decoder."""
    text = GemmaConfig(**text_sizes(head_dim=16))
    return PaliGemmaConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(**vision_sizes(vision_use_head=False)),
        image_token_index=IMAGE,
        vocab_size=text.vocab_size,
        projection_dim=text.hidden_size,
        hidden_size=text.hidden_size,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Return everything that forward and generate take."""
    sizes = model.config.vision_config
    processor = SiglipImageProcessor(
        size={"height": sizes.image_size, "width": sizes.image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    count = (sizes.image_size // sizes.patch_size) ** 2
    blocks = [[[IMAGE] * count for _ in row] for row in rows]
    for row in blocks:
        if row:
            row[-1].append(BOS)
    made = prompts(blocks, seed=seed, left=left)
    made["token_type_ids"] = torch.zeros_like(made["input_ids"])
    pictures = [picture for row in rows for picture in row]
    return made | ({"pixel_values": processor(pictures, return_tensors="pt")["pixel_values"]} if pictures else {})
