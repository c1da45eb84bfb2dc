"""InternVL and its kin: tiles of one size with a thumbnail behind them, patches merged by pixel shuffle."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.adapters.towers import find_layers


@register_adapter
class InternVLAdapter(Adapter):
    """`InternVLForConditionalGeneration`; frames of its videos are images of the prompt, with words between."""

    model_types = ("internvl", "qianfan_ocr")
    borders = "run"

    @cached_property
    def vision(self) -> Vision:
        """The tower has a CLS token in row 0; its patches lie in raster order and are merged before the projector.

        Raises:
            ValueError: CLS would be merged with patches, or several layers feed the projector.
        """
        config: Any = self.model.config
        if config.vision_feature_select_strategy != "default":
            raise ValueError(
                f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} merges the CLS token with "
                "patches; set it to 'default'"
            )
        layers, attentions = find_layers(self.base.get_submodule("vision_tower"))
        chosen = config.vision_feature_layer
        if not isinstance(chosen, int) or not -len(layers) <= chosen <= len(layers) or chosen == 0:
            raise ValueError(
                f"vision_feature_layer={chosen} is not the number of one encoder layer; the tower has {len(layers)}"
            )
        # Entry 0 of the hidden states is the embedding: a positive index is the output of the layer before.
        feature = chosen - 1 if chosen > 0 else len(layers) + chosen
        return Vision(layers, attentions, (feature,), cls=0, prefix=1, merge=round(1 / config.downsample_ratio))
