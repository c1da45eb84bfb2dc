"""Tiny LFM3-VL: patches of native shape in merge blocks of 2 x 2, each block one token; frames of videos in pairs."""

from __future__ import annotations

from PIL import Image
from transformers import Lfm3Config, Lfm3VlConfig, PreTrainedModel, Qwen2VLImageProcessor, Qwen3VLVideoProcessor
from transformers.models.lfm3_vl.configuration_lfm3_vl import Lfm3VlVisionConfig

from zoo.common import END, IMAGE, MORE, START, VIDEO, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(80, 128), (96, 64), (112, 112)]
PATCH, MERGE = 8, 2


def config() -> Lfm3VlConfig:
    """A tiny configuration, with convolutions in tower and decoder and sliding windows in the decoder."""
    vision = vision_sizes(num_hidden_layers=5, patch_size=PATCH)
    del vision["image_size"]
    text = text_sizes(num_hidden_layers=6, head_dim=16, sliding_window=16)
    return Lfm3VlConfig(
        vision_config=Lfm3VlVisionConfig(**vision, num_key_value_heads=1, spatial_merge_size=MERGE),
        text_config=Lfm3Config(**text),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        return prompts(rows, seed=seed, left=left)
    processor = Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=MERGE, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    )
    made = processor(pictures, return_tensors="pt")
    tokens = iter((made["image_grid_thw"].prod(-1) // MERGE**2).tolist())
    blocks = [[[START, *[IMAGE] * next(tokens), END] for _ in row] for row in rows]
    names = ("pixel_values", "image_grid_thw")
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in names}


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """The same with videos: a time stamp and marks around every pair of frames."""
    videos = [frames for row in rows for frames in row]
    if not videos:
        return prompts(rows, seed=seed, left=left)
    processor = Qwen3VLVideoProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        size={"shortest_edge": 32 * 32, "longest_edge": 4 * 64 * 64},
        do_sample_frames=False,
        cap_pixels_per_frame=False,
    )
    made = processor(videos, return_tensors="pt")
    grids = iter(made["video_grid_thw"].tolist())

    def block(time: int, height: int, width: int) -> list[int]:
        """Token ids of one video with so many patches."""
        return [MORE, MORE + 1, START, *[VIDEO] * (height * width // MERGE**2), END] * time

    blocks = [[block(*next(grids)) for _ in row] for row in rows]
    names = ("pixel_values_videos", "video_grid_thw")
    return prompts(blocks, seed=seed, left=left) | {name: made[name] for name in names}
