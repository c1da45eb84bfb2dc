"""Aria: crops of a picture, each read by learnt queries that attend to all of its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from vtprune.adapters.base import Adapter, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, grid_layout
from vtprune.pruner import Signal


@register_adapter
class AriaAdapter(Adapter):
    """`AriaForConditionalGeneration`; tokens are answers to queries and have no place in the picture."""

    model_types = ("aria",)
    # Nothing in the inputs tells how many crops a picture has; their placeholders follow one another.
    borders = "run"

    @cached_property
    def vision(self) -> Vision:
        """Not seen through: a token comes from all patches of its crop."""
        return Vision()

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A row of queries for each crop."""
        return [grid_layout(1, count) for count in counts]

    @cached_property
    def missing(self) -> dict[Signal, str]:
        """No signal of single patches."""
        reason = f"the projector of {type(self.model).__name__} makes each token from all patches of a crop"
        gone = dict.fromkeys((Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_LAYERS), reason)
        return super().missing | gone
