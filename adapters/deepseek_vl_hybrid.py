"""DeepSeek-VL with two towers: SigLIP's and SAM's features of each patch, side by side, become one token."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter


@register_adapter
class DeepseekVLHybridAdapter(Adapter):
    """`DeepseekVLHybridForConditionalGeneration`; of its towers SigLIP's is the one with a row for each token."""

    model_types = ("deepseek_vl_hybrid",)

    @cached_property
    def vision(self) -> Vision:
        """SigLIP's layers. The aligner takes the rows of both towers, so that features count behind it."""
        return replace(super().vision, projector=None)
