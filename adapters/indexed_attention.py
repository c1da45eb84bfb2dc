"""Decoders whose attention is sparse: an indexer selects keys for each query, and layers may take over a selection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from vtprune.adapters.base import Adapter


class IndexedAttentionAdapter(Adapter):
    """What families with an indexer share: it needs a mask always, and the numbers of keys that it finds are places."""

    @cached_property
    def last_stage(self) -> int:
        """The last layer before the first one that takes over a selection: it names keys by their places."""
        kinds: Sequence[str] = getattr(self.text_config, "indexer_types", None) or ()
        first = kinds.index("shared") if "shared" in kinds else len(self.layers)
        return min(super().last_stage, first - 1)

    def causal_mask(
        self,
        hidden: torch.Tensor,
        keys: torch.Tensor | None,
        cache: Any,
        layer: int,
        columns: torch.Tensor | None = None,
    ) -> Any:
        """The usual mask, also where attention by itself would need none."""
        mask = super().causal_mask(hidden, keys, cache, layer, columns)
        if mask is not None:
            return mask
        total = hidden.shape[1] if cache is None else int(cache.get_mask_sizes(hidden.shape[1], layer)[0])
        return causal(hidden, total)

    def ahead_mask(self, hidden: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor | None:
        """Causality among the present tokens."""
        return causal(hidden, hidden.shape[1], present)


def causal(hidden: torch.Tensor, keys: int, present: torch.Tensor | None = None) -> torch.Tensor:
    """Which of so many keys the last tokens of a sequence may attend to, `(batch, 1, length, keys)`.

    Args:
        hidden: States of these tokens, `(batch, length, dim)`.
        keys: Keys, those of the tokens last.
        present: Keys that hold a token, `(batch, keys)`; `None` for all.
    """
    batch, length = hidden.shape[:2]
    every = torch.ones(length, keys, dtype=torch.bool, device=hidden.device)
    mask = every.tril(keys - length).expand(batch, 1, -1, -1)
    return mask if present is None else mask & present.to(hidden.device)[:, None, None, :]
