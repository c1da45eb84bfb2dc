"""Idefics2: a perceiver makes so many tokens of each view, whatever its shape; split pictures have five views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from vtprune.adapters.base import Adapter, Borders, Vision
from vtprune.adapters.registry import register_adapter
from vtprune.layout import ImageLayout, Segment
from vtprune.pruner import Signal

_VIEWS = 5
"""Views of a picture that the processor has split: its quarters and the whole."""


@register_adapter
class Idefics2Adapter(Adapter):
    """`Idefics2ForConditionalGeneration`."""

    model_types = ("idefics2",)

    @cached_property
    def vision(self) -> Vision:
        """Nothing of the tower: no row of it belongs to a token."""
        return Vision()

    @cached_property
    def missing(self) -> dict[Signal, str]:
        """Tokens look at whole views."""
        reason = (
            f"the visual tokens of {type(self.model).__name__} are latents of a perceiver, each of which looks at its "
            "whole view: no patch of the vision tower belongs to one"
        )
        gone = super().missing
        return gone | dict.fromkeys((Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_LAYERS), reason)

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """A row of latents for each view; the model returns those of a row of the batch together."""
        tokens = self._latents
        view = ImageLayout((Segment(1, tokens),), tuple(range(tokens)), views=1, patches_per_view=tokens)
        return [view] * (sum(counts) // tokens)

    def borders_of(self, kind: str, inputs: Mapping[str, Any]) -> Borders:
        """The same mark stands between views of a picture and between pictures."""
        return views_of_pictures

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The real views, by their own sizes; those that rows are filled up with are zero."""
        views = pixels.flatten(0, 1)
        real = (views != 0).flatten(1).any(dim=1)
        found = list(views[real])
        mask = inputs.get("pixel_attention_mask")
        if mask is None:
            return found
        inside = mask.flatten(0, 1)[real].bool()
        sizes = torch.stack([inside[:, :, 0].sum(1), inside[:, 0].sum(1)], dim=1).tolist()
        return [view[:, :height, :width] for view, (height, width) in zip(found, sizes, strict=True)]

    @property
    def _latents(self) -> int:
        config: Any = self.model.config
        return int(config.perceiver_config.resampler_n_latents)


def views_of_pictures(line: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """How many views each picture has: five where all chains of views with one mark between are made of fives, or one.

    Five unsplit pictures side by side look like a split one, and are taken for it.

    Args:
        line: Token ids of a row.
        spans: First and last column of each view's placeholders.

    Example:
        >>> views_of_pictures([], [(1, 4), (6, 9), (15, 18)])
        [1, 1, 1]
    """
    chains = [1]
    for (_, last), (first, _) in pairwise(spans):
        if first == last + 2:
            chains[-1] += 1
        else:
            chains.append(1)
    views = _VIEWS if all(chain % _VIEWS == 0 for chain in chains) else 1
    return [views] * (sum(chains) // views)
