"""Static caches whose layers are as long as what they will hold, not as the prompt was before pruning."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import StaticLayer

_WHOLE = "_vtprune_whole_length"


def is_static(cache: Any, layer: int) -> bool:
    """Whether a layer of a cache has all its slots from the start."""
    layers = getattr(cache, "layers", ())
    return layer < len(layers) and isinstance(layers[layer], StaticLayer)


def shorten_static_layers(cache: Any, first: int, removed: int) -> None:
    """Takes the slots of tokens that are gone out of the layers that will never hold them.

    Only of layers that have not been allocated yet and have no window.

    Args:
        cache: Any cache.
        first: The layer from which on the tokens are gone.
        removed: Tokens of a row that are gone.
    """
    for layer in getattr(cache, "layers", ())[first:]:
        if type(layer) is StaticLayer and not layer.is_initialized:
            whole = layer.__dict__.setdefault(_WHOLE, layer.max_cache_len)
            layer.max_cache_len = whole - removed


def restore_static_layers(cache: Any) -> None:
    """Gives shortened layers back their length, to be allocated anew at their next use."""
    for layer in getattr(cache, "layers", ()):
        whole = layer.__dict__.pop(_WHOLE, None)
        if whole is not None and layer.max_cache_len != whole:
            layer.max_cache_len, layer.is_initialized = whole, False
