"""Video-LLaVA: a tower for pictures and one for frames, of which each frame keeps its CLS token as a visual token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.llava import chosen_layers
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment, grid_layout


@register_adapter
class VideoLlavaAdapter(Adapter):
    """`VideoLlavaForConditionalGeneration`; features are taken after the projector, which is given CLS tokens too."""

    model_types = ("video_llava",)

    @cached_property
    def vision(self) -> Vision:
        """The tower for pictures, with that for frames as its twin."""
        config = self.model.config
        towers = [chosen_layers(config, self.base.get_submodule(name)) for name in ("image_tower", "video_tower")]
        return replace(towers[0], twins=(towers[1],))

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A plain grid; of videos one for each frame, behind its CLS token."""
        config: Any = self.model.config
        patch = int(config.vision_config.patch_size)
        # Releases differ in what comes behind this.
        pixels = next(value for name, value in inputs.items() if name.startswith("pixel_values"))
        height, width = (int(side) // patch for side in pixels.shape[-2:])
        if kind == "image":
            return [grid_layout(height, width)] * len(counts)
        return [frames_layout(int(pixels.shape[1]), height, width)] * int(pixels.shape[0])


@lru_cache(maxsize=1024)
def frames_layout(frames: int, height: int, width: int) -> ImageLayout:
    """The layout of a video whose frames each begin with a token that stands for no patch.

    Example:
        >>> frames_layout(2, 1, 2).patches
        (-1, 0, 1, -1, 2, 3)
    """
    size = height * width
    patches = [patch for frame in range(frames) for patch in (-1, *range(frame * size, (frame + 1) * size))]
    segments = (Segment(1, 0, newline=True), Segment(height, width)) * frames
    return ImageLayout(segments, tuple(patches), views=frames, patches_per_view=size)
