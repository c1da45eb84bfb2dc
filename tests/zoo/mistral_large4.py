"""Tiny Mistral Large 4: pictures of any size as in Mistral 3; sparse attention over latent keys that layers share.

Every query selects up to `TOPK` keys, more than prompts here have: with fewer, a pruned run is not the same as one in
which tokens are masked after selection.
"""

from __future__ import annotations

from transformers import MistralLarge4Config, MistralLarge4TextConfig

from zoo.common import IMAGE, text_sizes
from zoo.mistral3 import SIZES, inputs, vision

__all__ = ["SIZES", "TOPK", "config", "inputs"]

TOPK = 512


def config(topk: int = TOPK) -> MistralLarge4Config:
    """Return a configuration with all kinds of layers: own, stored and shared keys, own and shared selection."""
    text = MistralLarge4TextConfig(
        **text_sizes(num_hidden_layers=6, num_key_value_heads=4),
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        index_topk=topk,
        index_head_dim=16,
        index_n_heads=8,
        no_rope_layers=[1, 1, 1, 0, 1, 0],
        kv_source_layers=[0, 1, 2, 3, 1, 3],
        indexer_types=["full", "full", "shared", "full", "full", "shared"],
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "attention_factor": 1.0,
        },
    )
    return MistralLarge4Config(text_config=text, vision_config=vision(), image_token_index=IMAGE, spatial_merge_size=2)
