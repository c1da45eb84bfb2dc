"""Tiny Mistral 4: a decoder with latent keys and experts that takes no pictures."""

from __future__ import annotations

from transformers import Mistral4Config

from zoo.common import text_sizes


def config() -> Mistral4Config:
    """Return a configuration with one dense layer and three of experts."""
    return Mistral4Config(
        **text_sizes(num_key_value_heads=4),
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    )
