"""HoloV: every part of the picture gets a share of the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_positive, check_share
from vtprune.ops.chunks import best_of_chunks, chunk_quotas, holistic_scores
from vtprune.ops.gather import as_float
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.registry import register


@register
@dataclass(frozen=True)
class HoloV(Pruner):
    """Shares the budget among chunks of consecutive patches by attention and variety, and keeps the best of each.

    Works on each encoder view with its share of the budget, in proportion to its patches. Survivors stand chunk by
    chunk, best first within a chunk. Newline tokens are kept, at the end, only when the budget exceeds the patches.

    The paper ranks within a chunk by the score that also sets the quotas and raises chunk scores to a power; its code,
    and the defaults, rank by attention alone without a power. Variety is brought to the mean attention of its own
    chunk, so that it lifts all chunk scores alike: it only matters where the score ranks. Where the code gives a chunk
    more than it holds, it fills up with zeros; here that part goes to the other chunks, as the paper describes. The
    paper's second stage inside the decoder is in no published code and is left out.

    Args:
        chunks: Chunks of a view, at least 1; views with fewer patches have one for each patch.
        variety: Weight of the spread of similarities beside the attention, in [0, 1].
        sharpness: Power of the chunk scores, above 0.
        rank_by: What decides within a chunk, `"attention"` or the `"score"` of attention and variety.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> HoloV(chunks=9).config()
        {'chunks': 9, 'variety': 0.09, 'sharpness': 1.0, 'rank_by': 'attention'}
    """

    chunks: int = 16
    variety: float = 0.09
    sharpness: float = 1.0
    rank_by: str = "attention"

    name = "holov"
    paper = "HoloV, NeurIPS 2025, arXiv 2510.02912"
    year = 2025
    summary = "Gives every part of the picture a share of the budget by attention and variety."
    whole_images = True
    signals = frozenset({Signal.ENCODER_ATTENTION})
    reorders = True
    golden = "holov.npz"

    def __post_init__(self) -> None:
        check_integer(self.name, "chunks", self.chunks, low=1)
        check_share(self.name, "variety", self.variety)
        check_positive(self.name, "sharpness", self.sharpness)
        if self.rank_by not in ("attention", "score"):
            raise ValueError(f"{self.name}: rank_by must be 'attention' or 'score', got {self.rank_by!r}")

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the best of the chunks of each view, view by view."""
        views, shares, separators = context.by_view(keep)
        picks = [self._pick(context, view, share) for view, share in zip(views, shares, strict=True) if share]
        return Reduction(torch.cat([*picks, separators], dim=1), ordered=True)

    def _pick(self, context: Context, view: torch.Tensor, share: int) -> torch.Tensor:
        """Tokens kept of one view, `(batch, share)`."""
        attention = as_float(context.encoder_attention[:, :, view]).mean(dim=1)
        chunks = min(self.chunks, len(view))
        scores = holistic_scores(context.hidden[:, view], attention, chunks, weight=self.variety)
        quotas = chunk_quotas(scores, chunks, share, sharpness=self.sharpness)
        return view[best_of_chunks(attention if self.rank_by == "attention" else scores, quotas, share)]
