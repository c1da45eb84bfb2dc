"""Evenly spaced tokens, a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.spread import spread_picks
from vtprune.pruner import Pruner, Reduction
from vtprune.registry import register


@register
@dataclass(frozen=True)
class Stride(Pruner):
    """Keeps patches evenly spaced in both directions; several grids share the budget by their patches.

    Newline tokens are kept only when the budget exceeds the patches.

    Example:
        >>> Stride().config()
        {}
    """

    name = "stride"
    paper = "Baseline, without a paper"
    year = 2024
    summary = "Keeps tokens evenly spaced over the picture."
    whole_images = True

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the centre patches of as many cells as there are tokens to keep."""
        grids, shares, separators = context.by_grid(keep)
        picks = [
            grid.flatten()[spread_picks(grid.shape[0], grid.shape[1], share, grid.device)]
            for grid, share in zip(grids, shares, strict=True)
            if share
        ]
        kept = torch.cat(picks).expand(context.batch, -1)
        return Reduction(torch.cat([kept, separators], dim=1))
