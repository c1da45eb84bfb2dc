"""The Inkling family, whose decoders do not let tokens be removed between layers."""

from __future__ import annotations

from torch import nn

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter

_NEXT_STEP = "for fewer visual tokens give the processor smaller pictures"


@register_adapter
class InklingAdapter(Adapter):
    """Refuses `InklingForConditionalGeneration`, of which positions are places."""

    model_types = ("inkling_mm_model",)

    def __init__(self, model: nn.Module) -> None:
        raise ValueError(
            f"{type(model).__name__} cannot be pruned: its attention counts distances between places in the sequence "
            "by itself and takes no positions, so that tokens that stay would change their distances, and four "
            f"convolutions in each layer mix neighbours, which tokens would become that never were; {_NEXT_STEP}"
        )


@register_adapter
class Inkling2Adapter(Adapter):
    """Refuses Inkling 2, whose decoder holds the states of all tokens beside those of the running layer."""

    model_types = ("inkling2", "inkling2_loop")

    def __init__(self, model: nn.Module) -> None:
        raise ValueError(
            f"{type(model).__name__} cannot be pruned: its decoder keeps the states that entered each block of layers "
            "in full length and appends those of the running layer to them (attention residuals), which fails as soon "
            f"as a layer returns fewer tokens than the prompt has; {_NEXT_STEP}"
        )
