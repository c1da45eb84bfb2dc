"""Tiny Hy4-VL: one token per 2 x 2 patches and a newline token after each row; sparse attention, several streams.

Every query selects up to `TOPK` keys, more than prompts here have: with fewer, a pruned run is not the same as one in
which tokens are masked after selection.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import HYV4VLConfig, HYV4VLForConditionalGeneration, PreTrainedModel
from transformers.models.hy_v4_vl.image_processing_hy_v4_vl import HYV4VLImageProcessor
from transformers.models.hy_v4_vl.video_processing_hy_v4_vl import HYV4VLVideoProcessor

from zoo.common import END, IMAGE, START, VIDEO, Inputs, prompts, text_sizes, vision_sizes
from zoo.glm4v import SIZES
from zoo.hunyuan_vl import PATCHES

__all__ = ["MODEL_CLASS", "SIZES", "TOPK", "config", "inputs", "video_inputs"]

TOPK = 512


class MODEL_CLASS:
    """Makes the model, whose decoder knows no attention but eager; the tower takes what is asked for."""

    @staticmethod
    def from_config(config: HYV4VLConfig, *, attn_implementation: str) -> HYV4VLForConditionalGeneration:
        """The model of a configuration."""
        parts = {"": "eager", "text_config": "eager", "vision_config": attn_implementation}
        return HYV4VLForConditionalGeneration._from_config(config, attn_implementation=parts)


def config(topk: int = TOPK) -> HYV4VLConfig:
    """The tiny configuration; layers 2 and 3 take over what layer 1 has picked."""
    text = text_sizes(
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        q_lora_rank=32,
        kv_lora_rank=24,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=16,
        index_topk=topk,
        index_head_dim=16,
        index_n_heads=16,
        indexer_types=["full", "full", "shared", "shared"],
        hc_mult=2,
        initializer_range=0.02,
    )
    vision = vision_sizes(max_image_size=48, out_hidden_size=64, spatial_merge_size=2)
    del vision["image_size"]
    return HYV4VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO)


def assemble(rows: list[list[Any]], made: Inputs, kind: str, placeholder: int, **words: Any) -> Inputs:
    """Prompts with a block of placeholders for each grid, one more in each row of patches, and what else is needed."""
    grids = made.get(f"{kind}_grid_thw")
    merge = PATCHES["merge_size"]
    counts = iter([t * (h // merge) * (w // merge + 1) for t, h, w in grids.tolist()] if grids is not None else [])
    text = prompts([[[START, *[placeholder] * next(counts), END] for _ in row] for row in rows], **words)
    types = (text["input_ids"] == IMAGE).long() + 2 * (text["input_ids"] == VIDEO).long()
    return text | {"mm_token_type_ids": types} | made


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    made = dict(HYV4VLImageProcessor(**PATCHES)(pictures, return_tensors="pt")) if pictures else {}
    return assemble(rows, made, "image", IMAGE, seed=seed, left=left)


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, for videos: all frames in one block."""
    videos = [video for row in rows for video in row]
    made = dict(HYV4VLVideoProcessor(**PATCHES)(videos, return_tensors="pt")) if videos else {}
    return assemble(rows, made, "video", VIDEO, seed=seed, left=left)
