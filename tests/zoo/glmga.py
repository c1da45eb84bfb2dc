"""Tiny GLM-GA: the classes of GLM-4.6V; its processors can make sides multiples of more than a merged patch."""

from __future__ import annotations

from functools import partial

from transformers import GlmgaConfig
from transformers.models.glmga.image_processing_glmga import GlmgaImageProcessor
from transformers.models.glmga.video_processing_glmga import GlmgaVideoProcessor

from zoo import glm4v

SIZES = [(64, 96), (128, 64), (96, 96)]
PLAIN_SIZE = (64, 96)
PATCHES = glm4v.PATCHES | {"patch_expand_factor": 2}


def config() -> GlmgaConfig:
    """The tiny configuration."""
    text = glm4v.decoder() | {"model_type": "glm4v_text"}
    return GlmgaConfig(text_config=text, vision_config=glm4v.tower() | {"model_type": "glm4v_vision"}, **glm4v.MARKS)


inputs = partial(glm4v.inputs, processor=GlmgaImageProcessor(**PATCHES))
video_inputs = partial(glm4v.video_inputs, processor=GlmgaVideoProcessor(**PATCHES))
