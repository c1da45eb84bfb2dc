"""BLIP-2, InstructBLIP and its videos: refused, because their `generate` goes around their forward."""

from __future__ import annotations

from torch import nn

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class Blip2Adapter(Adapter):
    """Says why: a model whose forward was pruned and whose `generate` was not would be worse than none."""

    model_types = ("blip-2", "instructblip", "instructblipvideo")

    def __init__(self, model: nn.Module) -> None:
        raise ValueError(
            f"{type(model).__name__} encodes pictures inside its own generate and hands embeddings to the generate of "
            "its language model, so that its forward, where tokens could be removed, never runs; supported are models "
            "that generate through their forward"
        )
