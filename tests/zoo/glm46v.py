"""Tiny GLM-4.6V: the parts of GLM-4.1V with its own processors."""

from __future__ import annotations

from functools import partial

from transformers import Glm46VConfig
from transformers.models.glm46v.image_processing_glm46v import Glm46VImageProcessor
from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor

from zoo import glm4v

SIZES, PLAIN_SIZE = glm4v.SIZES, glm4v.PLAIN_SIZE


def config() -> Glm46VConfig:
    """The tiny configuration."""
    text = glm4v.decoder() | {"model_type": "glm4v_text"}
    return Glm46VConfig(text_config=text, vision_config=glm4v.tower() | {"model_type": "glm4v_vision"}, **glm4v.MARKS)


inputs = partial(glm4v.inputs, processor=Glm46VImageProcessor(**glm4v.PATCHES))
video_inputs = partial(glm4v.video_inputs, processor=Glm46VVideoProcessor(**glm4v.PATCHES))
