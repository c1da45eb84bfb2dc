"""Tiny UDOP: an encoder of words and of patches merged by their places on a page, read by a decoder."""

from __future__ import annotations

from transformers import UdopConfig

from zoo.common import EOS, PAD, VOCAB


def config() -> UdopConfig:
    """Two layers each."""
    return UdopConfig(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        max_2d_position_embeddings=64,
        image_size=48,
        patch_size=8,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
