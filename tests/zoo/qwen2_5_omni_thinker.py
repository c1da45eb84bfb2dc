"""Tiny thinker of Qwen2.5-Omni: tower and decoder as in Qwen2.5-VL, an audio tower beside them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, Qwen2_5OmniThinkerConfig

from zoo import qwen2_vl
from zoo.common import IMAGE, MORE, VIDEO, Inputs, text_sizes
from zoo.qwen2_vl import PATCH, SIZES, ids

__all__ = ["SIZES", "audio", "config", "inputs", "omni_ids", "video_inputs"]

SECONDS = 0.5
"""Between two pairs of frames."""


def omni_ids() -> dict[str, Any]:
    """The special token ids of a configuration, those of sound included."""
    return ids() | {
        "audio_token_id": MORE,
        "audio_start_token_id": MORE + 1,
        "audio_end_token_id": MORE + 2,
        "user_token_id": MORE + 3,
    }


def audio(**changes: Any) -> dict[str, Any]:
    """Sizes of the audio tower."""
    return {
        "num_mel_bins": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 32,
        "max_source_positions": 64,
        "n_window": 8,
        "output_dim": 64,
    } | changes


def config() -> Qwen2_5OmniThinkerConfig:
    """Windows of 3 x 3 visual tokens, which leave ragged edges; full attention in layer 1 of 3."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 6 * PATCH,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    marks = omni_ids()
    del marks["audio_token_id"], marks["image_token_id"], marks["video_token_id"]
    return Qwen2_5OmniThinkerConfig(
        text_config=text_sizes(rope_parameters=rope),
        vision_config=vision,
        audio_config=audio(),
        audio_token_index=MORE,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        **marks,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """As for Qwen2-VL; kinds of tokens are found from their ids."""
    made = qwen2_vl.inputs(model, rows, seed=seed, left=left)
    return {name: value for name, value in made.items() if name != "mm_token_type_ids"}


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """As for Qwen2-VL, with the time between frames."""
    made = qwen2_vl.video_inputs(model, rows, seed=seed, left=left)
    made["video_second_per_grid"] = torch.full((len(made["video_grid_thw"]),), SECONDS)
    return {name: value for name, value in made.items() if name != "mm_token_type_ids"}
