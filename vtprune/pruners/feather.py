"""FEATHER: attention without the pull of rotary positions, and a coarse grid at first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer
from vtprune.ops.decay import geometric_counts
from vtprune.ops.gather import as_float, split_by
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Reduction, Signal, StagedPruner
from vtprune.registry import register


@register
@dataclass(frozen=True)
class Feather(StagedPruner):
    """Keeps, in two stages, the tokens that the last prompt token attends to when rotary embeddings are left out.

    The first stage keeps a coarse grid of every image whatever its score, and fills up with the highest scores; the
    second goes by scores alone. With N tokens the first keeps N r and the second a share r^2 of these, where r is
    such that the budget is met. The official code adds the grid to a first share of N r, so that its counts depend on
    the overlap; here the grid is part of the share, which it fills by score where it is larger. All tokens of an image
    compete, newline tokens too.

    Args:
        stages: The two decoder layers before which tokens are removed, ascending, 1 or more; attention is that of the
            layer before. `None` takes 8 and 16 of 32, scaled to the model.
        stride: Rows and columns from one token of the coarse grid to the next, 1 or more.

    The defaults of both are ours.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> Feather().schedule(576, 72)
        (288, 72)
    """

    stride: int = 3

    name = "feather"
    paper = "FEATHER, ICCV 2025, arXiv 2412.13180"
    year = 2025
    summary = "Keeps what the last prompt token attends to without rotary embeddings, at first with a coarse grid."
    signals = frozenset({Signal.UNROTATED_STATES})
    query_aware = True
    whole_images = True
    default_positions = "keep"
    paper_stages = (8, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.layers) != 2:
            raise ValueError(f"{self.name}: stages must be two decoder layers, got {self.stages!r}")
        check_integer(self.name, "stride", self.stride, low=1)

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """Counts of both stages; the first is rounded down."""
        first, _, last = geometric_counts(tokens, keep, 3)
        return first, last

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the highest mean over heads, best first, in the first stage behind the coarse grid."""
        scores = as_float(context.unrotated_last_token_attention).mean(dim=1)
        if context.layer != self.layers[0]:
            return Reduction(stable_topk(scores, keep))
        order = stable_topk(scores, context.tokens)
        coarse = torch.cat([grid[:: self.stride, :: self.stride].flatten() for grid in context.grids])
        is_coarse = torch.zeros_like(order, dtype=torch.bool).index_fill(1, coarse, True)
        first, rest = split_by(is_coarse.gather(1, order), len(coarse))
        return Reduction(order.gather(1, torch.cat([first, rest], dim=1)[:, :keep]))
