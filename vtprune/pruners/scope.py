"""SCOPE: salient tokens that cover the picture together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from vtprune.context import Context
from vtprune.ops.checks import check_positive
from vtprune.ops.coverage import weighted_coverage
from vtprune.ops.gather import as_float
from vtprune.pruner import Pruner, Reduction, Signal, check_flag
from vtprune.registry import register


@register
@dataclass(frozen=True)
class Scope(Pruner):
    """Picks greedily the patches that add most to the coverage of all patches, weighted by the encoder's attention.

    Coverage is measured with the cosine of the features before the projector, saliency by the attention summed over
    heads. Works on each encoder view with its share of the budget, in proportion to its patches. Newline tokens are
    kept only when the budget exceeds the patches.

    Args:
        sharpness: Power of the saliency, the paper's alpha, above 0.
        combine: How coverage and saliency make a score, `"multiply"` or `"add"`.
        parity: Once nothing is left to cover, go on with the lowest index as the paper's code does by the way, instead
            of by saliency.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> Scope(combine="add").config()
        {'sharpness': 1.0, 'combine': 'add', 'parity': False}
    """

    sharpness: float = 1.0
    combine: str = "multiply"
    parity: bool = False

    name = "scope"
    paper = "SCOPE, NeurIPS 2025, arXiv 2510.24214"
    year = 2025
    summary = "Keeps salient tokens that together resemble all others, by greedy coverage."
    whole_images = True
    signals = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_FEATURES})
    golden = "scope.npz"

    def __post_init__(self) -> None:
        check_positive(self.name, "sharpness", self.sharpness)
        check_flag(self.name, "parity", self.parity)
        if self.combine not in ("multiply", "add"):
            raise ValueError(f"{self.name}: combine must be 'multiply' or 'add', got {self.combine!r}")

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the greedy picks of each view, all views in one go."""
        views, shares, separators = context.by_view(keep)
        names = pad_sequence(list(views), batch_first=True, padding_value=-1)
        present = None
        if len({len(view) for view in views}) > 1:
            present = (names >= 0).repeat(context.batch, 1)
            names = names.clamp_min(0)
        picks = weighted_coverage(
            context.encoder_features[:, names].flatten(0, 1),
            as_float(context.encoder_attention).sum(dim=1)[:, names].flatten(0, 1),
            max(shares),
            sharpness=self.sharpness,
            add=self.combine == "add",
            fill_by_saliency=not self.parity,
            present=present,
        )
        picked = names.expand(context.batch, -1, -1).gather(2, picks.unflatten(0, (context.batch, len(views))))
        return Reduction(
            torch.cat([separators, *(picked[:, view, :share] for view, share in enumerate(shares))], dim=1)
        )
