"""Tiny GLM-5-Next: any size of picture, padded to whole 2 x 2 patches; linear and sparse attention, several streams."""

from __future__ import annotations

from functools import partial

from transformers import Glm5NextConfig
from transformers.models.glm5_next.image_processing_glm5_next import Glm5NextImageProcessor
from transformers.models.glm5_next.video_processing_glm5_next import Glm5NextVideoProcessor

from zoo import glm4v
from zoo.common import text_sizes

SIZES = glm4v.SIZES
PATCHES = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}


def config() -> Glm5NextConfig:
    """The tiny configuration: sparse attention keeps 8 groups of 4 keys."""
    text = text_sizes(
        num_hidden_layers=6,
        num_key_value_heads=4,
        layer_types=["linear_attention", "indexed_attention"] + 3 * ["linear_attention"] + ["indexed_attention"],
        mlp_layer_types=2 * ["dense"] + 4 * ["sparse"],
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        q_lora_rank=32,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=0,
        v_head_dim=16,
        index_topk=32,
        index_kpool=4,
        index_head_dim=16,
        index_n_heads=16,
        linear_head_dim=16,
        linear_num_heads=4,
        hc_mult=2,
    )
    vision = glm4v.tower(projection_intermediate_size=96)
    return Glm5NextConfig(text_config=text, vision_config=vision, **glm4v.MARKS)


inputs = partial(glm4v.inputs, processor=Glm5NextImageProcessor(min_image_tokens=4, max_image_tokens=120, **PATCHES))
video_inputs = partial(glm4v.video_inputs, processor=Glm5NextVideoProcessor(**PATCHES))
