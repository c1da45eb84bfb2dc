"""Reading query and key states where transformers dispatches attention, for every family and implementation.

transformers looks its attention function up by name at each call. While at least one module is watched, the entry
of that module's implementation is overridden by a function that tells the watcher and then calls the original. Eager
attention is not in that table; there the function of the modeling file that the module's class lives in is replaced.
The last `unwatch` restores both.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

EAGER = "eager"
_EAGER_FUNCTION = "eager_attention_forward"


@dataclass(frozen=True)
class AttentionStates:
    """What one call of an attention function was given, after rotary and norms, detached from the graph.

    Args:
        queries: `(batch, heads, length, head_dim)`.
        keys: `(batch, kv_heads, cached + length, head_dim)`.
        scaling: Factor on the dot products.
        mask: The mask in the implementation's own form.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    scaling: float
    mask: Any

    def to(self, device: torch.device) -> AttentionStates:
        """The same on another device."""
        return self.traverse(lambda tensor: tensor.to(device))

    def traverse(self, visit: Callable[[torch.Tensor], torch.Tensor]) -> AttentionStates:
        """The same with what `visit` makes of each tensor."""
        mask = visit(self.mask) if isinstance(self.mask, torch.Tensor) else self.mask
        return AttentionStates(visit(self.queries), visit(self.keys), self.scaling, mask)


Watcher = Callable[[AttentionStates], None]

_watchers: weakref.WeakKeyDictionary[nn.Module, list[Watcher]] = weakref.WeakKeyDictionary()
_overrides: dict[tuple[str, str], tuple[int, Callable[..., Any]]] = {}
_lock = threading.RLock()


def implementation(module: nn.Module) -> str:
    """Name of the attention implementation a module uses now."""
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    return EAGER if name is None else str(name)


def watch(module: nn.Module, watcher: Watcher) -> Callable[[], None]:
    """Calls `watcher` with the states of every attention call of `module`; returns the function that ends it.

    Raises:
        ValueError: The module's attention cannot be read.
    """
    place = _place(module)
    with _lock:
        _override(place)
        _watchers.setdefault(module, []).append(watcher)

    def unwatch() -> None:
        with _lock:
            remaining = _watchers.get(module, [])
            if watcher in remaining:
                remaining.remove(watcher)
                if not remaining:
                    _watchers.pop(module, None)
                _restore(place)

    return unwatch


def _place(module: nn.Module) -> tuple[str, str]:
    """Where the function that computes this module's attention is looked up: `(modeling file or "", name)`."""
    name = implementation(module)
    if name != EAGER:
        if name not in ALL_ATTENTION_FUNCTIONS:
            raise ValueError(f"attention implementation {name!r} of {type(module).__name__} is unknown to transformers")
        return "", name
    for cls in type(module).__mro__:
        if callable(getattr(sys.modules.get(cls.__module__), _EAGER_FUNCTION, None)):
            return cls.__module__, _EAGER_FUNCTION
    raise ValueError(
        f"{type(module).__name__} computes eager attention in its own way; load the model with "
        "attn_implementation='sdpa', which can be read"
    )


def _override(place: tuple[str, str]) -> None:
    if place in _overrides:
        users, original = _overrides[place]
        _overrides[place] = users + 1, original
        return
    source, name = place
    original = getattr(sys.modules[source], name) if source else ALL_ATTENTION_FUNCTIONS[name]
    _overrides[place] = 1, original
    _set(place, _tapped(original))


def _restore(place: tuple[str, str]) -> None:
    users, original = _overrides[place]
    if users > 1:
        _overrides[place] = users - 1, original
        return
    del _overrides[place]
    source, name = place
    if source:
        setattr(sys.modules[source], name, original)
    elif name in ALL_ATTENTION_FUNCTIONS._local_mapping:
        del ALL_ATTENTION_FUNCTIONS[name]
        if ALL_ATTENTION_FUNCTIONS.get(name) is not original:
            # Somebody else had overridden the entry before us; deleting brings back transformers' own function.
            ALL_ATTENTION_FUNCTIONS[name] = original


def _set(place: tuple[str, str], function: Callable[..., Any]) -> None:
    source, name = place
    if source:
        setattr(sys.modules[source], name, function)
    else:
        ALL_ATTENTION_FUNCTIONS[name] = function


def _tapped(original: Callable[..., Any]) -> Callable[..., Any]:
    def attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if module in _watchers:
            mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
            _tell(module, query, key, mask, kwargs.get("scaling"), kwargs.get("cu_seq_lens_q"))
        return original(module, query, key, *args, **kwargs)

    return attention


def _tell_now(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: Any,
    scaling: float | None,
    borders: torch.Tensor | None,
) -> None:
    """Calls the watchers of a module, once for each of several sequences that one call packs."""
    # Scores decide what is kept, nothing more: no gradient goes through them.
    query, key = query.detach(), key.detach()
    factor = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    lengths = None if borders is None else borders.diff().tolist()
    queries = [query] if lengths is None else query.split(lengths, dim=2)
    keys = [key] if lengths is None else key.split(lengths, dim=2)
    for part, keys_of_part in zip(queries, keys, strict=True):
        states = AttentionStates(part, keys_of_part, factor, mask)
        for watcher in list(_watchers.get(module, ())):
            watcher(states)


# Never inside a compiled graph, where the watchers would be traced once and for all.
_tell: Callable[..., None] = torch.compiler.disable(_tell_now)
