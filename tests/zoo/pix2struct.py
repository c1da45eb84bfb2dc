"""Tiny Pix2Struct: an encoder of patches, which a decoder of words reads by cross-attention."""

from __future__ import annotations

from transformers import Pix2StructConfig

from zoo.common import BOS, EOS, PAD, VOCAB


def config() -> Pix2StructConfig:
    """Two layers each."""
    sizes = {"hidden_size": 32, "d_kv": 16, "d_ff": 64}
    text = sizes | {
        "vocab_size": VOCAB,
        "num_layers": 2,
        "num_heads": 2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    tower = sizes | {
        "patch_embed_hidden_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "seq_len": 64,
    }
    return Pix2StructConfig(text_config=text, vision_config=tower)
