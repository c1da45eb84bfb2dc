"""Tiny Idefics2: pictures of any shape become four quarters and the whole, each 12 tokens of a perceiver."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    MistralConfig,
    PreTrainedModel,
)
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig

from zoo.common import IMAGE, START, Inputs, prompts, text_sizes, vision_sizes

SIZES = [(48, 64), (80, 40), (56, 56)]
TOKENS, VIEWS = 12, 5
NO_PLACES = "its tokens are latents of a perceiver, each of which looks at the whole view"


def config() -> Idefics2Config:
    """A tiny configuration."""
    return Idefics2Config(
        vision_config=Idefics2VisionConfig(**vision_sizes(image_size=64)),
        perceiver_config=Idefics2PerceiverConfig(
            hidden_size=64,
            resampler_n_latents=TOKENS,
            resampler_depth=2,
            resampler_n_heads=4,
            resampler_head_dim=16,
            num_key_value_heads=2,
        ),
        text_config=MistralConfig(**text_sizes(sliding_window=40)),
        image_token_id=IMAGE,
    )


class Maker:
    """Makes the model with random latents: as initialised they are all equal, and so are a view's tokens."""

    @staticmethod
    def _from_config(config: Idefics2Config, attn_implementation: str) -> PreTrainedModel:
        """The model with random weights."""
        model: PreTrainedModel = Idefics2ForConditionalGeneration._from_config(
            config, attn_implementation=attn_implementation
        )
        torch.nn.init.normal_(model.get_parameter("model.connector.perceiver_resampler.latents"))
        return model


MODEL_CLASS = Maker


def inputs(model: PreTrainedModel, rows: list[list[Image.Image]], *, seed: int = 0, left: bool = True) -> Inputs:
    """Everything that forward and generate take."""
    if not any(rows):
        return prompts(rows, seed=seed, left=left)
    processor = Idefics2ImageProcessor(size={"shortest_edge": 24, "longest_edge": 64}, do_image_splitting=True)
    made = processor(rows, return_tensors="pt")
    block = [*[START, *[IMAGE] * TOKENS] * VIEWS, START]
    names = ("pixel_values", "pixel_attention_mask")
    return prompts([[block] * len(row) for row in rows], seed=seed, left=left) | {name: made[name] for name in names}
