"""Tiny Cohere Compass: patches of any resolution, merged 2 x 2, with deepstack and M-RoPE; parallel decoder layers."""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import (
    CohereCompassConfig,
    CohereCompassForConditionalGeneration,
    CohereCompassImageProcessor,
    CohereCompassVideoProcessor,
)

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes

SIZES = [(64, 96), (96, 48), (80, 80)]
PLAIN_SIZE = (64, 96)


def config() -> CohereCompassConfig:
    """Sliding layers with rotations and a full layer without."""
    return CohereCompassConfig(
        text_config=text_sizes(
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            sliding_window=16,
            logit_scale=0.25,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
                "full_attention": None,
            },
        ),
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 64,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def _typed(made: Inputs) -> Inputs:
    """Adds the token types."""
    ids = made["input_ids"]
    return made | {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


def inputs(
    model: CohereCompassForConditionalGeneration, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return _typed(prompts([[] for _ in rows], seed=seed, left=left))
    processor = CohereCompassImageProcessor(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128})
    made = processor(images=pictures, return_tensors="pt")
    counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist())
    blocks = [[[START, *[IMAGE] * next(counts), END] for _ in row] for row in rows]
    return _typed(prompts(blocks, seed=seed, left=left)) | {
        name: made[name] for name in ("pixel_values", "image_grid_thw")
    }


def video_inputs(
    model: CohereCompassForConditionalGeneration,
    rows: list[list[list[Image.Image]]],
    *,
    seed: int = 0,
    left: bool = True,
) -> Inputs:
    """Everything that forward and generate take, of videos."""
    videos = [np.stack([np.asarray(frame) for frame in video]) for row in rows for video in row]
    if not videos:
        return _typed(prompts([[] for _ in rows], seed=seed, left=left))
    processor = CohereCompassVideoProcessor(
        patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 8 * 128 * 128}, do_sample_frames=False
    )
    made = processor(videos=videos, return_tensors="pt")
    grids = iter(made["video_grid_thw"].tolist())

    def block(frames: int, height: int, width: int) -> list[int]:
        return [MORE, START, *[VIDEO] * (height * width // 4), END] * frames

    blocks = [[block(*next(grids)) for _ in row] for row in rows]
    return _typed(prompts(blocks, seed=seed, left=left)) | {
        name: made[name] for name in ("pixel_values_videos", "video_grid_thw")
    }
