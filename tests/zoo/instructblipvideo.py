"""Tiny InstructBlipVideo: as InstructBLIP, 16 outputs of the Q-Former for each frame of a video."""

from __future__ import annotations

from PIL import Image
from transformers import InstructBlipVideoConfig, InstructBlipVideoVideoProcessor, PreTrainedModel

from zoo.blip_2 import MODEL_CLASS, NO_PLACES, QFORMER, QUERIES, SCALE, SIDE, SIZES, TEXT, behind
from zoo.common import VIDEO, Inputs, vision_sizes
from zoo.instructblip import questions

__all__ = ["MODEL_CLASS", "NO_PLACES", "SCALE", "SIZES", "config", "inputs", "video_inputs"]

NO_FRAMES = "each query of a frame looks at the whole frame"


def config() -> InstructBlipVideoConfig:
    """A decoder of the OPT kind; the tower has a class token."""
    return InstructBlipVideoConfig(
        vision_config=vision_sizes(initializer_range=0.02),
        qformer_config=QFORMER,
        text_config=TEXT,
        num_query_tokens=QUERIES,
        video_token_index=VIDEO,
    )


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take: pictures are videos of one frame here."""
    return video_inputs(model, [[[picture] for picture in row] for row in rows], seed=seed, left=left)


def video_inputs(
    model: PreTrainedModel, rows: list[list[list[Image.Image]]], *, seed: int = 0, left: bool = True
) -> Inputs:
    """Everything that forward and generate take, for videos of equally many frames."""
    videos = [video for row in rows for video in row]
    text = behind([QUERIES * sum(map(len, row)) for row in rows], model.config.video_token_id, seed=seed, left=left)
    text |= questions([len(row) for row in rows], seed=seed)
    if not videos:
        return text
    processor = InstructBlipVideoVideoProcessor(size={"height": SIDE, "width": SIDE})
    return text | dict(processor(videos=videos, return_tensors="pt"))
