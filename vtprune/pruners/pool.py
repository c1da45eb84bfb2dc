"""Average pooling on the grid, a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.gather import take
from vtprune.ops.pool import cell_pool
from vtprune.pruner import Pruner, Reduction
from vtprune.registry import register


@register
@dataclass(frozen=True)
class Pool(Pruner):
    """Averages the tokens of exactly as many cells as the budget; several grids share it by their patches.

    A cell's mean takes the place of its centre patch. Newline tokens are kept, as they are, only when the budget
    exceeds the patches.

    Example:
        >>> Pool().merges
        True
    """

    name = "pool"
    paper = "Baseline, without a paper"
    year = 2024
    summary = "Averages neighbouring tokens on their grid."
    whole_images = True
    merges = True

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Pools each grid into its share of the budget."""
        grids, shares, separators = context.by_grid(keep)
        kept, features = [], []
        for grid, share in zip(grids, shares, strict=True):
            if share:
                (height, width), tokens = grid.shape, grid.flatten()
                pooled, centres = cell_pool(context.hidden[:, tokens], height, width, share)
                kept.append(tokens[centres].expand(context.batch, -1))
                features.append(pooled)
        return Reduction(
            torch.cat([*kept, separators], dim=1),
            features=torch.cat([*features, take(context.hidden, separators)], dim=1),
        )
