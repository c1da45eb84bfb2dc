"""Tiny Qianfan-OCR: InternVL's tiles of 16 tokens, a thumbnail last, before a Qwen3 decoder."""

from __future__ import annotations

from transformers import (
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    QianfanOCRVisionConfig,
    Qwen3Config,
)

from zoo.common import IMAGE, text_sizes, vision_sizes
from zoo.internvl import PLAIN_SIZE, SIZES, TILE, TOKENS, Maker, inputs, view_boxes

__all__ = ["MODEL_CLASS", "PLAIN_SIZE", "SIZES", "config", "inputs", "view_boxes"]

MODEL_CLASS = Maker(QianfanOCRForConditionalGeneration)


def config() -> QianfanOCRConfig:
    """A tiny configuration."""
    return QianfanOCRConfig(
        vision_config=QianfanOCRVisionConfig(**vision_sizes(image_size=TILE)),
        text_config=Qwen3Config(**text_sizes(head_dim=16)),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
    )
