"""Finding one's way in vision towers: encoder layers, their attention, the projector, and how patches are merged."""

from __future__ import annotations

from typing import Any

from torch import nn

from vtprune.adapters.decoders import find_attention

_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "vision", "image_tower", "vision_embed_tokens")
_PROJECTORS = ("multi_modal_projector", "projector", "aligner", "mm_projector", "vision_projection", "connector")
_LISTS = ("layers", "blocks", "layer", "resblocks", "transformer_layers")
_SIDES = ("spatial_merge_size", "merge_size")


def find_tower(base: nn.Module) -> nn.Module | None:
    """The vision tower of a model, by its usual names."""
    return next((module for name in _TOWERS if isinstance(module := getattr(base, name, None), nn.Module)), None)


def find_projector(base: nn.Module) -> nn.Module | None:
    """The module between tower and decoder, by its usual names."""
    return next((module for name in _PROJECTORS if isinstance(module := getattr(base, name, None), nn.Module)), None)


def find_layers(tower: nn.Module) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
    """The encoder layers of a tower and the attention module of each; nothing where attention cannot be seen."""
    lists = [
        module
        for path, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] in _LISTS
    ]
    for found in sorted(lists, key=len, reverse=True):
        attentions = [find_attention(layer, number) for number, layer in enumerate(found)]
        if found and all(attention is not None for attention in attentions):
            return tuple(found), tuple(attention for attention in attentions if attention is not None)
    return (), ()


def merge_side(config: Any, tower: nn.Module) -> tuple[int, bool]:
    """Side of the square of patches that becomes one token, and whether the tower keeps such squares together."""
    for holder in (tower, getattr(config, "vision_config", None), config):
        for name in _SIDES:
            side = getattr(holder, name, None)
            if isinstance(side, int) and side > 1:
                return side, True
    return 1, False
