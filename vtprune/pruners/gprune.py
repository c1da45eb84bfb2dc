"""G-Prune: tokens that a walk over similar tokens often ends at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_positive, check_share
from vtprune.ops.gather import split_by
from vtprune.ops.propagation import propagated_importance
from vtprune.ops.share import largest_remainder
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction
from vtprune.registry import register


@register
@dataclass(frozen=True)
class GPrune(Pruner):
    """Joins similar tokens in a graph, lets their importance flow along its edges and keeps where most arrives.

    Works on the projected features of each encoder view with its share of the budget, in proportion to its patches.
    Newline tokens are kept before patches, as in the paper's code for LLaVA-NeXT, as far as one patch of each view
    still has room.

    Args:
        threshold: Lowest cosine that joins two tokens, in [0, 1].
        temperature: Of the softmax over a token's edges, above 0.
        steps: Steps that importance flows, at least 1.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> GPrune().steps
        5
    """

    threshold: float = 0.5
    temperature: float = 0.03
    steps: int = 5

    name = "gprune"
    paper = "G-Prune, AAAI 2025, arXiv 2501.02268"
    year = 2025
    summary = "Keeps the tokens that importance flows to in a graph of similar tokens."
    whole_images = True
    golden = "gprune.npz"

    def __post_init__(self) -> None:
        check_share(self.name, "threshold", self.threshold)
        check_positive(self.name, "temperature", self.temperature)
        check_integer(self.name, "steps", self.steps, low=1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the newline tokens there is room for, then the highest scores of each view."""
        views = context.view_tokens
        patches = sum(len(view) for view in views)
        newlines = min(context.tokens - patches, max(0, keep - len(views)))
        shares = largest_remainder([len(view) for view in views], keep - newlines)
        kept = [split_by(context.is_patch, patches)[1][:, :newlines]]
        for view, share in zip(views, shares, strict=True):
            if share:
                scores = propagated_importance(
                    context.hidden[:, view], threshold=self.threshold, temperature=self.temperature, steps=self.steps
                )
                kept.append(view[stable_topk(scores, share)])
        return Reduction(torch.cat(kept, dim=1))
