"""Tiny Qwen4-Exp: images as in Qwen3.5; residual streams, n-grams of token ids, block-sparse attention."""

from __future__ import annotations

from transformers import Qwen4ExpConfig

from zoo.common import text_sizes
from zoo.qwen2_vl import ids
from zoo.qwen3_5 import SIZES, hybrid, inputs, video_inputs
from zoo.qwen3_vl import vision
from zoo.qwen3_vl_moe import experts

__all__ = ["SIZES", "config", "inputs", "video_inputs"]


def config() -> Qwen4ExpConfig:
    """Six hybrid layers, n-grams in the first and the fourth; attention to four blocks of four keys and the rest."""
    text = text_sizes(
        **hybrid("indexed_attention"),
        **experts(shared_expert_intermediate_size=32),
        hc_count=2,
        hc_lowrank=16,
        ple_layer_ids=[1, 4],
        ple_embed_dim=32,
        heads_per_ngram=2,
        ngram_vocab_size_base=500,
        make_ngram_vocab_size_divisible_by=4,
        split_ngram_parts=4,
        indexer_n_heads=4,
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=16,
        indexer_compress_ratio=4,
    )
    del text["intermediate_size"]
    return Qwen4ExpConfig(text_config=text, vision_config=vision(), **ids())
