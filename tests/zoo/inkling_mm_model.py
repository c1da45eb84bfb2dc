"""Tiny Inkling: one token for each 8 x 8 pixels, every one encoded on its own by folding layers without attention."""

from __future__ import annotations

from PIL import Image
from transformers import InklingConfig, InklingImageProcessor, PreTrainedModel

from zoo.common import IMAGE, MORE, START, Inputs, prompts, text_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]


def config() -> InklingConfig:
    """Six layers: convolutions in all, windows in four, experts in all but the first."""
    kinds = ["hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid"]
    text = text_sizes(
        num_hidden_layers=len(kinds),
        head_dim=16,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=16,
        sliding_window_size=16,
        d_rel=8,
        rel_extent=40,
        layer_types=kinds,
        mlp_layer_types=["dense"] + ["sparse"] * (len(kinds) - 1),
        moe_intermediate_size=48,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=2,
        logits_mup_width_multiplier=1.0,
    )
    return InklingConfig(
        text_config=text,
        vision_config={"patch_size": 8, "temporal_patch_size": 2, "num_hidden_layers": 5, "hidden_size": 32},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        image_token_id=IMAGE,
        image_bos_token_id=START,
        audio_token_id=MORE,
        audio_bos_token_id=MORE + 1,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    side = model.config.vision_config.patch_size
    made = InklingImageProcessor(size={"height": side, "width": side})(images=pictures, return_tensors="pt")
    counts = iter(made["num_patches"].tolist())
    blocks = [[[START, *[IMAGE] * next(counts)] for _ in row] for row in rows]
    return prompts(blocks, seed=seed, left=left) | {"pixel_values": made["pixel_values"]}
