"""DiffusionGemma, which is refused: a second stack denoises text over the keys of the one that reads prompts."""

from __future__ import annotations

from torch import nn

from vtprune.adapters.base import Adapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class DiffusionGemmaAdapter(Adapter):
    """`DiffusionGemmaForBlockDiffusion`.

    Raises:
        ValueError: Always.
    """

    model_types = ("diffusion_gemma",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        raise ValueError(
            f"{type(model).__name__} reads the prompt with one stack of layers and denoises text with a second one, "
            "which attends to the first one's keys under one mask for all layers: they cannot hold different tokens; "
            "supported are models that continue a prompt token by token"
        )
