"""Qwen4-Exp, whose layers share one history of the positions of all keys."""

from __future__ import annotations

from torch import nn

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class Qwen4ExpAdapter(Adapter):
    """Refuses `Qwen4ExpForConditionalGeneration`, which can hold the same tokens in all layers only."""

    model_types = ("qwen4_exp",)

    def __init__(self, model: nn.Module) -> None:
        raise ValueError(
            f"{type(model).__name__} cannot be pruned: its decoder keeps one history of the positions of all keys of "
            "the prompt, and at each new token hands rotary tables of that length to every layer, whose indexers look "
            "them up by the places of their own keys; a layer with fewer keys would rotate by positions of other "
            "tokens. For fewer visual tokens lower max_pixels of the processor"
        )
