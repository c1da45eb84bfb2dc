"""Tiny Inkling 2 with looped layers: pictures as in Inkling 2; two decoder layers run twice in each pass."""

from __future__ import annotations

from transformers import Inkling2LoopConfig

from zoo.common import IMAGE
from zoo.inkling2 import MODEL_CLASS, SIZES, inputs, text, vision

__all__ = ["MODEL_CLASS", "SIZES", "config", "inputs"]


def config() -> Inkling2LoopConfig:
    """Six layers, of which the third (full attention) and the fourth (window) are looped."""
    loop = {
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 4,
        "loop_num_passes": 2,
        "loop_gate_rank": 8,
    }
    return Inkling2LoopConfig(
        text_config=text() | loop,
        vision_config=vision() | {"model_type": "inkling2_vision"},
        image_token_id=IMAGE,
    )
