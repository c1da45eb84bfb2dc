"""ToMe: pairs of alike tokens become one, round after round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vtprune.context import Context
from vtprune.ops.bipartite import merge_rounds
from vtprune.ops.checks import check_integer
from vtprune.ops.gather import take
from vtprune.pruner import Pruner, Reduction, check_flag
from vtprune.registry import register


class _Part(NamedTuple):
    """Merged tokens of one view: states `(batch, n, dim)`, places and sizes `(batch, n)`."""

    features: torch.Tensor
    tokens: torch.Tensor
    sizes: torch.Tensor


@register
@dataclass(frozen=True)
class ToMe(Pruner):
    """Merges the most similar pairs of projected tokens, round after round, until the budget is met.

    ToMe works inside a vision transformer, between attention and MLP of every layer and on its keys; papers that
    compare with it on vision-language models do so there or, as here, on the tokens that enter the language model,
    where similarity is that of the tokens themselves. Merged tokens are means weighted by what they stand for. A round
    removes at most half of the tokens, so that 64 of 576 need four: 288, 144, 72, 64.

    Each encoder view merges within itself and has its share of the budget, in proportion to its tokens. A merged token
    takes the place of the token that the others were sent to, and tokens stand in raster order. Newline tokens are
    kept, at the end, only when the budget exceeds the patches.

    Args:
        per_round: Tokens merged away in a round at most, the paper's r, at least 1; `None` for as many as can be.
        proportional_attention: The language model attends to a token as often as tokens were merged into it (paper,
            section 3), by the logarithm of that number on its attention logits.
        ordered: Leave each view's tokens in the order of the paper's code instead: in the last round those that stayed
            as they were, then those that others were sent to.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> ToMe(per_round=16).weighs_attention
        False
    """

    per_round: int | None = None
    proportional_attention: bool = False
    ordered: bool = False

    name = "tome"
    paper = "ToMe, ICLR 2023, arXiv 2210.09461"
    year = 2023
    summary = "Merges the most similar pairs of projected tokens until the budget is met."
    whole_images = True
    merges = True
    golden = "tome.npz"

    def __post_init__(self) -> None:
        if self.per_round is not None:
            check_integer(self.name, "per_round", self.per_round, low=1)
        check_flag(self.name, "proportional_attention", self.proportional_attention)
        check_flag(self.name, "ordered", self.ordered)

    @property
    def weighs_attention(self) -> bool:
        return self.proportional_attention

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Merges within each view and lines the results up."""
        views, shares, separators = context.by_view(keep)
        parts = [
            *(
                self._merge(context.hidden[:, view], view, share)
                for view, share in zip(views, shares, strict=True)
                if share
            ),
            _Part(take(context.hidden, separators), separators, torch.ones_like(separators, dtype=torch.float32)),
        ]
        features, tokens, sizes = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        return Reduction(
            tokens, features=features, sizes=sizes if self.proportional_attention else None, ordered=self.ordered
        )

    def _merge(self, hidden: torch.Tensor, view: torch.Tensor, budget: int) -> _Part:
        """Brings one view down to its budget."""
        states, kept, sizes = merge_rounds(hidden, budget, per_round=self.per_round)
        return _Part(states, view[kept], sizes)
