"""Tiny Perception LM: a thumbnail first and then tiles, each of 16 tokens after average pooling; frames alike."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import PerceptionLMConfig, PreTrainedModel
from transformers.models.perception_lm.image_processing_perception_lm import PerceptionLMImageProcessor
from transformers.models.perception_lm.video_processing_perception_lm import PerceptionLMVideoProcessor

from zoo.common import IMAGE, VIDEO, Inputs, prompts, text_sizes

PLAIN_SIZE = (64, 128)
SIZES = [(64, 60), (120, 60), (60, 180)]
SIDE, TILE = 64, 16


def config() -> PerceptionLMConfig:
    """A timm tower with a class token, 8 x 8 patches pooled 2 x 2, and a Llama decoder."""
    return PerceptionLMConfig(
        text_config={"model_type": "llama", **text_sizes()},
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_base_patch16_224",
            "do_pooling": False,
            "model_args": {
                "embed_dim": 32,
                "depth": 3,
                "num_heads": 2,
                "img_size": [SIDE, SIDE],
                "patch_size": 8,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [8, 8],
            },
        },
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def view_boxes(layout: Any) -> list[tuple[float, float, float, float]]:
    """The part of a picture twice as wide as high that each view shows: all of it, then its halves."""
    assert layout.views == 3
    return [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)]


def packed(pixels: list[torch.Tensor]) -> torch.Tensor:
    """Pixels of shape (items, tiles, ...): the processor's stack, or one item of all tiles if it can't stack them."""
    if len({len(item) for item in pixels}) == 1:
        return torch.stack(pixels)
    return torch.cat(pixels)[None]


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=4, size={"height": SIDE, "width": SIDE})
    pixels = [processor(images=picture, return_tensors="pt")["pixel_values"][0] for picture in pictures]
    blocks = iter([[IMAGE] * (len(tiles) * TILE) for tiles in pixels])
    asked = prompts([[next(blocks) for _ in row] for row in rows], seed=seed, left=left)
    return asked | {"pixel_values": packed(pixels)}


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    videos = [video for row in rows for video in row]
    if not videos:
        return prompts([[] for _ in rows], seed=seed, left=left)
    processor = PerceptionLMVideoProcessor(size={"height": SIDE, "width": SIDE}, do_sample_frames=False)
    pixels = [processor(videos=[video], return_tensors="pt")["pixel_values_videos"][0] for video in videos]
    blocks = iter([[VIDEO] * (len(frames) * TILE) for frames in pixels])
    asked = prompts([[next(blocks) for _ in row] for row in rows], seed=seed, left=left)
    return asked | {"pixel_values_videos": packed(pixels)}
