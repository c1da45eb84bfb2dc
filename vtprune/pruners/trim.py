"""TRIM: the tokens that CLIP relates to the question, and one for all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from vtprune.context import Context
from vtprune.ops.gather import split_by, take
from vtprune.ops.outliers import iqr_outlier_count
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_flag
from vtprune.registry import register


@register
@dataclass(frozen=True)
class Trim(Pruner):
    """Keeps the patches that CLIP finds most telling for the question, and the mean of the others as one more token.

    Works on each encoder view with its share of the budget, in proportion to its tokens; the mean is one token of that
    share, and all of a share of 1. Kept patches come in raster order, then the means, each in the place of the last
    patch that it stands for. Newline tokens are kept, at the end, only when the budget exceeds the patches.

    Without a budget (`reduce_adaptive`) each view keeps the outliers among its scores, by the quartiles of their
    softmax, and its mean; the code takes one count for all views of a batch.

    The question is cut off at CLIP's 77 tokens. The code's rounding of the result to float16 is left out.

    Args:
        negate: Whether the lowest products with the question are the most telling, as in the code of the published
            numbers; the text of the paper has it the other way.
        cosine: Whether lengths are left out of the product, as in the text of the paper but not in the code.

    Raises:
        TypeError: A field of the wrong type.

    Example:
        >>> Trim().config()
        {'negate': True, 'cosine': False}
    """

    negate: bool = True
    cosine: bool = False

    name = "trim"
    paper = "TRIM, COLING 2025, arXiv 2409.10994"
    year = 2025
    summary = "Keeps the patches that CLIP relates to the question and averages the rest into one token."
    whole_images = True
    signals = frozenset({Signal.CLIP_TEXT, Signal.ENCODER_FEATURES})
    query_aware = True
    merges = True
    golden = "trim.npz"

    def __post_init__(self) -> None:
        check_flag(self.name, "negate", self.negate)
        check_flag(self.name, "cosine", self.cosine)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the highest scores of each view, less one for the mean of the rest."""
        views, shares, separators = context.by_view(keep)
        scores = self._scores(context)
        picks, cut = [], []
        for view, share in zip(views, shares, strict=True):
            if 0 < share < len(view):
                cut.append(view)
                share -= 1
            picks.append(view[stable_topk(scores[:, view], share)])
        picked = torch.cat(picks, dim=1)
        is_kept = torch.zeros_like(context.is_patch).scatter(1, picked, True)
        kept = split_by(is_kept, picked.shape[1])[0]
        return _with_means(context, is_kept, kept, cut, separators)

    def reduce_adaptive(self, context: Context) -> Reduction:
        """Keeps the scores that stand out in each view, and the mean of the others."""
        views = [view for view in context.view_tokens if len(view)]
        scores = self._scores(context)
        is_kept = torch.zeros_like(context.is_patch)
        for view in views:
            rank = stable_topk(scores[:, view], len(view)).argsort(dim=1)
            is_kept[:, view] = rank < iqr_outlier_count(scores[:, view].float().softmax(dim=1)).unsqueeze(1)
        counts = is_kept.sum(dim=1, keepdim=True)
        most = int(counts.max())
        reduction = _with_means(context, is_kept, split_by(is_kept, most)[0], views, counts[:, :0])
        slots = torch.arange(most + len(views), device=counts.device)
        return Reduction(
            reduction.kept,
            features=reduction.features,
            valid=(slots < counts) | (slots >= most),
            ordered=True,
        )

    def _scores(self, context: Context) -> torch.Tensor:
        """How telling each patch is, before the softmax, which would round low scores to equal ones."""
        patches = context.clip_project(context.encoder_features).double()
        question = context.clip_text_truncated.unsqueeze(1).double()
        if self.cosine:
            patches, question = normalize(patches, dim=-1), normalize(question, dim=-1)
        product = (patches * question).sum(dim=-1)
        return -product if self.negate else product


def _with_means(
    context: Context,
    is_kept: torch.Tensor,
    kept: torch.Tensor,
    views: Sequence[torch.Tensor],
    separators: torch.Tensor,
) -> Reduction:
    """The tokens `kept`, the mean of what is not kept of each of `views`, none of which is kept whole, separators."""
    means, places = [], []
    for view in views:
        dropped = ~is_kept[:, view]
        weights = dropped.double() / dropped.sum(dim=1, keepdim=True)
        means.append(weights.unsqueeze(1) @ context.encoder_features[:, view].double())
        last = torch.arange(len(view), device=view.device).masked_fill(~dropped, -1).amax(dim=1, keepdim=True)
        places.append(view[last])
    states = context.hidden
    features = [take(states, kept)]
    if means:
        projected = context.project(torch.cat(means, dim=1).to(context.encoder_features.dtype))
        features.append(projected.to(states.dtype))
    return Reduction(
        torch.cat([kept, *places, separators], dim=1),
        features=torch.cat([*features, take(states, separators)], dim=1),
        ordered=True,
    )
