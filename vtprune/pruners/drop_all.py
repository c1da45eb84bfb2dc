"""No visual tokens at all: the baseline that tells what the text alone answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner, Reduction
from vtprune.registry import register


@register
@dataclass(frozen=True)
class DropAll(Pruner):
    """Removes every visual token before the language model.

    Any budget below the number of tokens means none; a budget that keeps all keeps all.

    Example:
        >>> DropAll().schedule(576, 64)
        (0,)
    """

    name = "drop-all"
    paper = "Baseline, without a paper"
    year = 2024
    summary = "Removes all visual tokens, so that the language model answers from the text alone."

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """None, unless the budget keeps all."""
        return (tokens if keep >= tokens else 0,)

    def attainable(self, layout: ImageLayout, keep: int) -> int:
        """None, unless the budget keeps all."""
        return keep if keep >= layout.tokens else 0

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps nothing.

        Raises:
            ValueError: Something is to be kept.
        """
        if keep:
            raise ValueError(f"{self.name}: keep must be 0, because no token has precedence here; got {keep}")
        return Reduction(torch.zeros(context.batch, 0, dtype=torch.int64, device=context.hidden.device))
