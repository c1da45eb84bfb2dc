"""Tiny DeepSeek-VL of two towers: SigLIP's and SAM's patches, joined by channel, are 36 tokens a picture."""

from __future__ import annotations

from PIL import Image
from transformers import DeepseekVLHybridConfig, PreTrainedModel
from transformers.models.deepseek_vl_hybrid.image_processing_deepseek_vl_hybrid import DeepseekVLHybridImageProcessor

from zoo.common import IMAGE, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]


def config() -> DeepseekVLHybridConfig:
    """A SigLIP tower, a SAM tower with window and global attention, and a Llama decoder."""
    return DeepseekVLHybridConfig(
        text_config={"model_type": "llama", **text_sizes()},
        vision_config={"model_type": "siglip_vision_model", **vision_sizes()},
        high_res_vision_config={
            "model_type": "sam_vision_model",
            **vision_sizes(image_size=96),
            "output_channels": 16,
            "window_size": 5,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
        },
        image_token_id=IMAGE,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    asked = prompts([[[IMAGE] * 36 for _ in row] for row in rows], seed=seed, left=left)
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return asked
    processor = DeepseekVLHybridImageProcessor(
        size={"height": 48, "width": 48}, high_res_size={"height": 96, "width": 96}, min_size=8
    )
    made = processor(images=pictures, return_tensors="pt")
    return asked | {name: made[name] for name in ("pixel_values", "high_res_pixel_values")}
