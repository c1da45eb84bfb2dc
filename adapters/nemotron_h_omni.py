"""Nemotron 3 Omni: pictures of any resolution and pairs of video frames in one RADIO tower, shuffled 2 x 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from vtprune.adapters.base import Adapter, Placeholder, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers
from vtprune.layout import ImageLayout, grid_layout, video_layout


@register_adapter
class NemotronOmniAdapter(Adapter):
    """`NemotronH_Omni_Reasoning_V3`; a view of a video is a pair of frames."""

    model_types = ("nemotron_h_omni",)

    @cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Videos fill the placeholders of images."""
        image = self.image_token_id
        return Placeholder("image", image, "get_image_features"), Placeholder("video", image, "get_video_features")

    @cached_property
    def vision(self) -> Vision:
        """The first of the class tokens is the tower's summary; registers follow, then patches in raster order."""
        config: Any = self.model.config
        tower: Any = self.base.get_submodule("vision_model")
        layers, attentions = find_layers(tower)
        classes = int(tower.config.num_cls_tokens)
        return Vision(
            layers,
            attentions,
            (len(layers) - 1,),
            cls=0 if classes else None,
            prefix=classes + int(tower.config.num_registers),
            merge=round(1 / float(config.downsample_ratio)),
        )

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Grids follow from the pictures' grids of patches, and from the size of all videos.

        Raises:
            ValueError: The model drops tokens of videos itself.
        """
        side = self.vision.merge
        if kind == "image":
            return [grid_layout(height // side, width // side) for height, width in inputs["image_grid_hw"].tolist()]
        model: Any = self.model
        if model.video_pruning_rate > 0:
            raise ValueError(
                f"{type(model).__name__} drops tokens of videos itself (video_pruning_rate={model.video_pruning_rate}) "
                "behind the prompt's back; set model.video_pruning_rate = 0, process the videos again with that rate, "
                "and let vtprune drop them"
            )
        cell = int(model.vision_model.patch_size) * side
        height, width = (int(length) // cell for length in inputs["pixel_values_videos"].shape[-2:])
        return [video_layout(count // (height * width), height, width) for count in counts]
