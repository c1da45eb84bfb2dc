"""Tiny IDEFICS: pictures are read by gated cross-attention layers, never part of the sequence."""

from __future__ import annotations

from transformers import IdeficsConfig

from zoo.common import BOS, EOS, PAD, VOCAB


def config() -> IdeficsConfig:
    """Two layers, a cross-attention layer before each."""
    return IdeficsConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        vision_config={
            "embed_dim": 32,
            "image_size": 48,
            "patch_size": 8,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        perceiver_config={"use_resampler": False},
    )
