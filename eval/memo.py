"""Reusing the vision tower's work when the same batch of pictures comes again under another method or budget.

Nothing that a method may look at changes: the layer whose output is projected still runs, and its attention with it.
Only the layers below it, whose result depends on the pixels alone, and those above it, which nobody reads, are
skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class EncoderMemo:
    """What entered the last needed layer of a vision tower, by batch.

    Args:
        model: A model with a `vision_tower` of uniform layers; with any other nothing is remembered.
        limit: Bytes that may be kept. What comes after is not remembered: sweeps go through the batches in a circle,
            and throwing out the oldest would throw out each one just before it is needed.
    """

    def __init__(self, model: nn.Module, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.hits = 0
        self._used = 0
        self._states: dict[Hashable, torch.Tensor] = {}
        self._layers, self._last = _needed_layers(model)

    @property
    def active(self) -> bool:
        """Whether there are layers to skip."""
        return self._last >= 2

    @contextmanager
    def batch(self, key: Hashable) -> Iterator[None]:
        """Within, the tower may be run once, on the pictures that `key` names."""
        if not self.active:
            yield
        elif key in self._states:
            self.hits += 1
            with self._replayed(self._states[key]):
                yield
        else:
            hook = self._layers[self._last].register_forward_pre_hook(self._recorder(key))
            try:
                yield
            finally:
                hook.remove()

    def _recorder(self, key: Hashable) -> Callable[[nn.Module, Any], None]:
        def record(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            size = arguments[0].nbytes
            if self._used + size <= self.limit:
                self._states[key] = arguments[0].detach()
                self._used += size

        return record

    @contextmanager
    def _replayed(self, states: torch.Tensor) -> Iterator[None]:
        def unchanged(hidden: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            return hidden

        def recalled(hidden: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            if hidden.shape != states.shape:
                raise ValueError(f"remembered pictures of shape {tuple(states.shape)}, got {tuple(hidden.shape)}")
            return states

        skipped = [layer for index, layer in enumerate(self._layers) if index != self._last]
        try:
            for layer in skipped:
                layer.forward = unchanged
            self._layers[self._last - 1].forward = recalled
            yield
        finally:
            for layer in skipped:
                vars(layer).pop("forward", None)


def _needed_layers(model: nn.Module) -> tuple[list[nn.Module], int]:
    """The tower's layers and the number of the last one whose output is used; none if that cannot be told."""
    tower = getattr(getattr(model, "model", model), "vision_tower", None)
    selected = getattr(getattr(model, "config", None), "vision_feature_layer", None)
    depth = getattr(getattr(tower, "config", None), "num_hidden_layers", None)
    if not isinstance(tower, nn.Module) or not isinstance(selected, int) or not isinstance(depth, int):
        return [], 0
    for name, module in tower.named_modules():
        if name.endswith("layers") and isinstance(module, nn.ModuleList) and len(module) == depth:
            # Hidden state 0 is the embeddings; hidden state i is the output of layer i - 1.
            return list(module), selected % (depth + 1) - 1
    return [], 0
