"""GLM-5-Next: linear attention, and sparse attention that finds causality and groups of keys itself; no positions."""

from __future__ import annotations

from typing import Any

import torch

from vtprune.adapters.glm4v import Glm4vAdapter
from vtprune.adapters.indexed_attention import IndexedAttentionAdapter
from vtprune.adapters.registry import register_adapter


@register_adapter
class Glm5NextAdapter(IndexedAttentionAdapter, Glm4vAdapter):
    """`Glm5NextForConditionalGeneration`.

    All its layers take a mask of padding and go by the order of tokens: to them a removed token was never there.
    """

    model_types = ("glm5_next",)
    streams = "last"

    def attends(self, layer: int) -> bool:
        """No layer takes a mask of queries and keys."""
        return False

    def causal_mask(
        self,
        hidden: torch.Tensor,
        keys: torch.Tensor | None,
        cache: Any,
        layer: int,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Which of the new tokens are no padding."""
        return self.ahead_mask(hidden, None if keys is None else keys[:, -hidden.shape[1] :])

    def ahead_mask(self, hidden: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """Which tokens are present."""
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if present is None else present
