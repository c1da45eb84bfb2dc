"""Tiny Florence-2: pictures are part of an encoder's sequence, which a decoder reads by cross-attention."""

from __future__ import annotations

from transformers import Florence2Config

from zoo.common import BOS, EOS, IMAGE, PAD, VOCAB


def config() -> Florence2Config:
    """An encoder and a decoder of the BART kind, two layers each."""
    text = {
        "model_type": "bart",
        "vocab_size": VOCAB,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    tower = {
        "depths": [1, 1, 1, 1],
        "embed_dim": [8, 8, 16, 16],
        "num_heads": [1, 1, 2, 2],
        "num_groups": [1, 1, 2, 2],
        "window_size": 4,
        "projection_dim": 32,
    }
    return Florence2Config(text_config=text, vision_config=tower, image_token_id=IMAGE)
