"""What must be remembered beside a KV cache whose layers hold different tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from vtprune.engine.static_cache import restore_static_layers

_ATTRIBUTE = "_vtprune_state"


@dataclass
class CachedTokens:
    """Which tokens the layers from one boundary on have cached.

    Args:
        columns: Prompt column of each cached slot, `(batch, slots)`; -1 for fillers. Tokens that came after column
            `end` are cached one by one behind these.
        end: Columns that `columns` accounts for.
        fillers: Whether some slots are fillers.
        shift: How far packed positions lie behind the prompt's own, `(batch, 1)`; `None` where positions are kept.
        bias: Added to the attention logits of each slot, `(batch, slots)`; nothing is added to those behind.
    """

    columns: torch.Tensor
    end: int
    fillers: bool
    shift: torch.Tensor | None
    bias: torch.Tensor | None = None

    def upto(self, seen: int) -> torch.Tensor:
        """`columns` with the tokens behind them, up to prompt column `seen`."""
        if seen == self.end:
            return self.columns
        tail = torch.arange(self.end, seen, device=self.columns.device).expand(self.columns.shape[0], -1)
        return torch.cat([self.columns, tail], dim=1)

    def bias_upto(self, seen: int) -> torch.Tensor | None:
        """`bias` with zeros for the tokens behind, up to prompt column `seen`."""
        return None if self.bias is None else torch.nn.functional.pad(self.bias, (0, seen - self.end))

    def keys(self, allowed: torch.Tensor | None, seen: int) -> torch.Tensor | None:
        """Which cached slots may be attended to, `(batch, slots)`, from the same for all prompt columns so far.

        `None` when all may.
        """
        if allowed is None and not self.fillers:
            return None
        columns = self.upto(seen)
        here = columns >= 0
        return here if allowed is None else allowed.to(columns.device).gather(1, columns.clamp_min(0)) & here


@dataclass
class CacheState:
    """Kept on the cache object itself, so that it goes wherever the cache goes, copies included.

    Args:
        boundaries: Cached tokens from each decoder layer on at which they change.
        seen: Prompt and generated tokens so far, pruned ones included.
        padding: `False` for padding among the first columns, `(batch, columns)`; `None` without padding.
    """

    boundaries: dict[int, CachedTokens] = field(default_factory=dict)
    seen: int = 0
    padding: torch.Tensor | None = None

    def at(self, layer: int) -> CachedTokens | None:
        """The cached tokens that hold for a layer; `None` where nothing was removed."""
        below = [boundary for boundary in self.boundaries if boundary <= layer]
        return self.boundaries[max(below)] if below else None

    def seen_in(self, cache: Any) -> int:
        """Tokens so far, pruned ones included, also after the cache was cropped behind our back."""
        counted = counted_layer(cache)
        length = cache.get_seq_length(counted) if isinstance(cache, PrunedCache) else self.seen
        if isinstance(length, torch.Tensor):
            return self.seen
        first = self.at(counted)
        return int(length if first is None else length - first.columns.shape[1] + first.end)

    def follow(self, cache: Any) -> None:
        """Catches up with a cache that was cropped: assisted decoding takes rejected tokens back.

        Raises:
            ValueError: The cache was cropped into the part of the prompt where tokens were removed.
        """
        self.seen = self.seen_in(cache)
        for layer, cached in self.boundaries.items():
            surplus = cached.end - self.seen
            if surplus <= 0:
                continue
            tail = torch.arange(self.seen, cached.end, device=cached.columns.device)
            if surplus > cached.columns.shape[1] or not bool((cached.columns[:, -surplus:] == tail).all()):
                raise ValueError(
                    f"the cache was cropped to {self.seen} tokens, into the pruned prompt of {cached.end}; crop only "
                    "what came after the prompt's images, or start from an empty cache"
                )
            bias = None if cached.bias is None else cached.bias[:, :-surplus]
            self.boundaries[layer] = replace(cached, columns=cached.columns[:, :-surplus], end=self.seen, bias=bias)
        if self.padding is not None:
            self.padding = self.padding[:, : self.seen]


def counted_layer(cache: Any) -> int:
    """The first layer of a cache that holds keys; those of recurrent layers do not count tokens."""
    layers = getattr(cache, "layers", ())
    return next((number for number, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin)), 0)


class PrunedCache:
    """Mixed into the class of a cache object whose layers hold different tokens.

    Without a layer, `get_seq_length` tells how many tokens the cache stands for, as `generate` and decoding loops
    mean it; with one, how many that layer holds.
    """

    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        """Tokens the cache stands for, or slots that a layer holds."""
        state = state_of(self)
        if layer_idx is None and state is not None:
            return state.seen_in(self)
        parent: Any = super()
        return parent.get_seq_length(counted_layer(self) if layer_idx is None else layer_idx)

    def reset(self) -> None:
        """Empties the cache and forgets what was pruned."""
        parent: Any = super()
        parent.reset()
        restore_static_layers(self)
        self.__dict__.pop(_ATTRIBUTE, None)


_pruned_classes: dict[type, type] = {}


def state_of(cache: object) -> CacheState | None:
    """The state that rides on a cache, or `None`."""
    state = getattr(cache, _ATTRIBUTE, None)
    return state if isinstance(state, CacheState) else None


def attach_state(cache: Any) -> CacheState:
    """The state that rides on a cache, made if there is none."""
    state = state_of(cache)
    if state is None:
        state = CacheState()
        setattr(cache, _ATTRIBUTE, state)
        if not isinstance(cache, PrunedCache):
            cls = type(cache)
            if cls not in _pruned_classes:
                _pruned_classes[cls] = type(f"Pruned{cls.__name__}", (PrunedCache, cls), {})
            cache.__class__ = _pruned_classes[cls]
    return state
