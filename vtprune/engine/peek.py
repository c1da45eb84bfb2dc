"""Query and key states of a decoder layer before it runs: its forward is called and broken off at its attention.

Thus norm, projections and rotary are the layer's own, whatever the family, and nothing is written to a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vtprune.engine.cache_names import CACHE_NAMES
from vtprune.engine.taps import AttentionStates


class _BrokenOffError(Exception):
    """Carries what the attention was given out of the layer."""


class Peek:
    """Waits for the attention of one layer to be called, and breaks that call off."""

    def __init__(self) -> None:
        self._layer: int | None = None
        self._found: AttentionStates | None = None

    def receive(self, layer: int, states: AttentionStates) -> None:
        """To be told of every attention call; the one waited for does not come back from here."""
        if layer == self._layer:
            self._found = states
            raise _BrokenOffError

    @contextmanager
    def _waiting(self, layer: int) -> Iterator[None]:
        self._layer, self._found = layer, None
        try:
            yield
        except _BrokenOffError:
            pass
        finally:
            self._layer = None

    @torch.no_grad()
    def states(
        self, number: int, forward: Callable[..., Any], hidden: torch.Tensor, arguments: dict[str, Any]
    ) -> AttentionStates:
        """What the layer's attention would be given.

        Args:
            number: Its index.
            forward: The decoder layer's own forward: what is around it is for its real run.
            hidden: States that enter it, `(batch, length, dim)`.
            arguments: Its other arguments; a cache among them is left out.
        """
        arguments = {**arguments, **{name: None for name in (*CACHE_NAMES, "use_cache") if name in arguments}}
        with self._waiting(number):
            forward(hidden, **arguments)
        if self._found is None:
            raise RuntimeError(
                f"the attention of decoder layer {number} was not seen; was the attention implementation changed "
                "after wrapping? Unwrap, change it, wrap again"
            )
        found, self._found = self._found, None
        return found
