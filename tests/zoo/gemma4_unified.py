"""Tiny Gemma 4 without encoder: pictures and frames fill at most 70 tokens, each a projected square of pixels."""

from __future__ import annotations

from PIL import Image
from transformers import (
    Gemma4UnifiedConfig,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedTextConfig,
    Gemma4UnifiedVideoProcessor,
    Gemma4UnifiedVisionConfig,
    PreTrainedModel,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs
from zoo.gemma4 import SIZES, image_prompts, sizes, text_changes, video_prompts

__all__ = ["PLAIN_SIZE", "SIZES", "config", "inputs", "video_inputs"]

PLAIN_SIZE = (80, 192)
"""Is not resized: the norm of a square of one colour, which has no variance, would blow up any ringing."""


def config() -> Gemma4UnifiedConfig:
    """Return a configuration with windows of 16 tokens in every second layer."""
    return Gemma4UnifiedConfig(
        text_config=Gemma4UnifiedTextConfig(**text_changes()),
        vision_config=Gemma4UnifiedVisionConfig(
            patch_size=8, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=80, output_proj_dims=32
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=MORE,
        boi_token_id=START,
        eoi_token_id=END,
        boa_token_id=MORE + 1,
        eoa_token_index=MORE + 2,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Return everything that forward and generate take."""
    return image_prompts(Gemma4UnifiedImageProcessor(**sizes(model)), rows, seed=seed, left=left)


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Return everything that forward and generate take."""
    processor = Gemma4UnifiedVideoProcessor(**sizes(model), do_sample_frames=False)
    return video_prompts(processor, rows, seed=seed, left=left)
