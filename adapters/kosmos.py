"""KOSMOS-2 and KOSMOS-2.5, which are refused: a mask, and no token of its own, says where visual tokens stand."""

from __future__ import annotations

from torch import nn

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class KosmosAdapter(Adapter):
    """`Kosmos2ForConditionalGeneration` and `Kosmos2_5ForConditionalGeneration`.

    Raises:
        ValueError: Always.
    """

    model_types = ("kosmos-2", "kosmos-2.5")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        raise ValueError(
            f"{type(model).__name__} has no placeholder token: the argument image_embeds_position_mask says where its "
            "text model writes image features over ordinary words; supported are decoder-only models that fill image "
            "placeholders"
        )
