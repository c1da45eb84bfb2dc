"""Tiny Inkling 2: every picture is a grid of any size, one token for 8 x 8 pixels (2 x 2 patches), without marks."""

from __future__ import annotations

from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Inkling2Config,
    Inkling2ImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from zoo.common import IMAGE, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
KINDS = ["hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid"]


class MODEL_CLASS:
    """Makes the model: its decoder has nothing but eager attention, its tower has all."""

    @staticmethod
    def from_config(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
        """The model with that attention in its tower."""
        return AutoModelForImageTextToText.from_config(
            config, attn_implementation={"": "eager", "text_config": "eager", "vision_config": attn_implementation}
        )


def text() -> dict[str, object]:
    """Sizes of the decoder: convolutions, both kinds of attention, residual blocks of two layers, experts."""
    sizes = text_sizes(num_hidden_layers=len(KINDS), head_dim=16, moe_intermediate_size=48)
    del sizes["intermediate_size"]
    return sizes | {
        "unpadded_vocab_size": sizes["vocab_size"],
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": 16,
        "d_rel": 8,
        "rel_extent": 40,
        "log_scaling_n_floor": 16,
        "layer_types": KINDS,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_layers_per_attn_res_block": 2,
    }


def vision() -> dict[str, object]:
    """Sizes of the tower, a class token in front of each picture's patches."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "posemb_grid_size": 8,
        "projection_hidden_dim": 64,
        "text_hidden_size": 64,
        "layer_scale_init_value": 1.0,
    }


def config() -> Inkling2Config:
    """Six layers, of which the third and the last see everything."""
    return Inkling2Config(text_config=text(), vision_config=vision(), image_token_id=IMAGE)


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    cell = model.config.vision_config.patch_size * model.config.vision_config.spatial_merge_size
    processor = Inkling2ImageProcessor(size={"height": cell, "width": cell})
    made = processor(images=pictures, return_tensors="pt")
    counts = iter(made["image_grid_thw"].prod(-1).tolist())
    blocks = [[[IMAGE] * next(counts) for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | dict(made)
