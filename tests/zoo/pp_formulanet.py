"""Tiny PP-FormulaNet: an encoder of pictures, which a decoder of formulas reads by cross-attention."""

from __future__ import annotations

from transformers import PPFormulaNetConfig

from zoo.common import BOS, EOS, PAD, VOCAB


def config() -> PPFormulaNetConfig:
    """Two layers each."""
    text = {
        "vocab_size": VOCAB,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    tower = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
        "post_conv_in_channels": 16,
        "post_conv_mid_channels": 16,
        "post_conv_out_channels": 32,
        "decoder_hidden_size": 32,
        "initializer_range": 0.02,
    }
    return PPFormulaNetConfig(text_config=text, vision_config=tower)
