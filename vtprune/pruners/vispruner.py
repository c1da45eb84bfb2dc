"""VisPruner: the patches that the encoder attends to, then what differs from the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_share
from vtprune.ops.gather import as_float, take
from vtprune.ops.residual import drop_redundant
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.registry import register


@register
@dataclass(frozen=True)
class VisPruner(Pruner):
    """Keeps tokens with high CLS attention, and fills the budget with the rest thinned of near-duplicates.

    Several encoder views share the budget by their patches and are treated one by one. Newline tokens are kept only
    when the budget exceeds the patches. Thinning is sensitive to rounding: a swapped near-tie changes later choices.

    Args:
        important: Share of each view's budget for the highest attention, in [0, 1]; rounded down.
        per_round: Tokens dropped between two comparisons of the others, at least 1.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> VisPruner(important=0.25).important
        0.25
    """

    important: float = 0.5
    per_round: int = 8

    name = "vispruner"
    paper = "VisPruner, ICCV 2025, arXiv 2412.01818"
    year = 2025
    summary = "Keeps tokens that the encoder's CLS token attends to, then those least similar to the rest."
    whole_images = True
    signals = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_FEATURES})
    golden = "vispruner.npz"

    def __post_init__(self) -> None:
        check_share(self.name, "important", self.important)
        check_integer(self.name, "per_round", self.per_round, low=1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the important and the dissimilar tokens of each view."""
        views, shares, separators = context.by_view(keep)
        attention = as_float(context.encoder_attention).mean(dim=1)
        kept = []
        for view, share in zip(views, shares, strict=True):
            order = view[stable_topk(attention[:, view], len(view))]
            important = int(share * self.important)
            others = order[:, important:]
            left = drop_redundant(take(context.encoder_features, others), share - important, per_round=self.per_round)
            kept += [order[:, :important], others.gather(1, left)]
        return Reduction(torch.cat([*kept, separators], dim=1))
