"""MiniMax M3: frames as in Qwen2-VL; layers that select blocks of keys by their places in the sequence."""

from __future__ import annotations

import torch

from vtprune.adapters.base import Adapter, register_adapter
from vtprune.adapters.indexed_attention import causal


@register_adapter
class MiniMaxM3Adapter(Adapter):
    """`MiniMaxM3SparseForConditionalGeneration`.

    Of a video that the processor cuts into segments each segment is a video: the model is not told which belong
    together.
    """

    model_types = ("minimax_m3_vl",)
    slot_positions = True

    def ahead_mask(self, hidden: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """Causality among the present tokens; without a mask its sparse layers would make one that knows no padding."""
        return causal(hidden, hidden.shape[1], present)
