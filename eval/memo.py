"""Reusing the vision tower's work when the same batch of pictures comes again under another method or budget.

Nothing that a method may look at changes: what the last needed layer takes in or puts out is remembered, so that its
hooks see the same states, and where a method looks at that layer's attention the layer itself runs again. The layers
above it are skipped, because nobody reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class EncoderMemo:
    """Input and output of the last needed layer of a vision tower, by batch.

    Args:
        model: A model with a `vision_tower` of uniform layers; with any other nothing is remembered.
        limit: Bytes that may be kept. What comes after is not remembered: sweeps go through the batches in a circle,
            and throwing out the oldest would throw out each one just before it is needed.
    """

    def __init__(self, model: nn.Module, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.hits = 0
        self._used = 0
        self._states: dict[Hashable, tuple[torch.Tensor, torch.Tensor]] = {}
        self._layers, self._last = _needed_layers(model)

    @contextmanager
    def batch(self, key: Hashable, *, attention: bool) -> Iterator[None]:
        """Within, the tower may be run once, on the pictures that `key` names.

        Args:
            key: What the pictures are remembered by.
            attention: Whether the attention of the last needed layer is looked at.
        """
        if self._last < 1:
            yield
        elif key in self._states:
            self.hits += 1
            with self._replayed(*self._states[key], attention=attention):
                yield
        else:
            hook = self._layers[self._last].register_forward_hook(self._recorder(key))
            try:
                yield
            finally:
                hook.remove()

    def _recorder(self, key: Hashable) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def record(_module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            states = arguments[0].detach(), output.detach()
            size = sum(state.nbytes for state in states)
            if self._used + size <= self.limit:
                self._states[key] = states
                self._used += size

        return record

    @contextmanager
    def _replayed(self, entering: torch.Tensor, leaving: torch.Tensor, *, attention: bool) -> Iterator[None]:
        def unchanged(hidden: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            return hidden

        def recalling(states: torch.Tensor) -> Callable[..., torch.Tensor]:
            def recalled(hidden: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
                if hidden.shape != states.shape:
                    raise ValueError(f"remembered pictures of shape {tuple(states.shape)}, got {tuple(hidden.shape)}")
                return states

            return recalled

        substitutes: list[Any] = [unchanged] * len(self._layers)
        substitutes[self._last - 1] = recalling(entering)
        substitutes[self._last] = None if attention else recalling(leaving)
        try:
            for layer, substitute in zip(self._layers, substitutes, strict=True):
                if substitute is not None:
                    layer.forward = substitute
            yield
        finally:
            for layer in self._layers:
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
