"""GLM-4.1V and its kin: packed grids of patches, whose videos are filled in at the placeholder of images."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from vtprune.adapters.base import Adapter, Placeholder
from vtprune.adapters.registry import register_adapter


@register_adapter
class Glm4vAdapter(Adapter):
    """`Glm4vForConditionalGeneration`, its mixture-of-experts sibling, GLM-4.6V and GLM-OCR."""

    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr")

    @cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Images and videos share one token; `video_token_id` is never in a prompt."""
        token = self.image_token_id
        return Placeholder("image", token, "get_image_features"), Placeholder("video", token, "get_video_features")
