"""Tiny DeepSeek-VL: each picture, padded to a square, becomes 36 tokens."""

from __future__ import annotations

from PIL import Image
from transformers import DeepseekVLConfig, PreTrainedModel
from transformers.models.deepseek_vl.image_processing_deepseek_vl import DeepseekVLImageProcessor

from zoo.common import IMAGE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]


def config() -> DeepseekVLConfig:
    """A SigLIP tower and a Llama decoder."""
    return DeepseekVLConfig(
        text_config={"model_type": "llama", **text_sizes()},
        vision_config={"model_type": "siglip_vision_model", **vision_sizes()},
        image_token_id=IMAGE,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    asked = prompts([[[IMAGE] * 36 for _ in row] for row in rows], seed=seed, left=left)
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return asked
    processor = DeepseekVLImageProcessor(size={"height": 48, "width": 48}, min_size=8)
    return asked | {"pixel_values": processor(images=pictures, return_tensors="pt")["pixel_values"]}
