"""Static caches whose layers are as long as what they will hold, not as the prompt was before pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import StaticLayer

if TYPE_CHECKING:
    from vtprune.engine.run import Run

_WHOLE = "_vtprune_whole_length"


def is_static(cache: Any, layer: int) -> bool:
    """Whether a layer of a cache has all its slots from the start."""
    layers = getattr(cache, "layers", ())
    return layer < len(layers) and isinstance(layers[layer], StaticLayer)


def shorten_static_layers(cache: Any, run: Run) -> None:
    """Takes the slots of tokens that a prefill removes out of the layers that will never hold them.

    Only layers that have not been allocated yet and have no window.
    """
    lengths = run.planned_lengths
    if lengths is None or run.seen:
        return
    for layer, length in zip(getattr(cache, "layers", ()), lengths, strict=False):
        if type(layer) is StaticLayer and not layer.is_initialized:
            whole = layer.__dict__.setdefault(_WHOLE, layer.max_cache_len)
            layer.max_cache_len = whole - (run.length - length)


def restore_static_layers(cache: Any) -> None:
    """Gives shortened layers back their length, to be allocated anew at their next use."""
    for layer in getattr(cache, "layers", ()):
        whole = layer.__dict__.pop(_WHOLE, None)
        if whole is not None and layer.max_cache_len != whole:
            layer.max_cache_len, layer.is_initialized = whole, False
