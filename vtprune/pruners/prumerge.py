"""LLaVA-PruMerge: what the CLS token attends to, each merged with its like, and one token for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer
from vtprune.ops.gather import as_float, take
from vtprune.ops.neighbour_merge import neighbour_merge, weighted_rest
from vtprune.ops.outliers import iqr_outlier_count
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_flag
from vtprune.registry import register


class Choice(NamedTuple):
    """Which tokens are made of a view's patches.

    Args:
        pool: The patches that are merged, `(batch, patches)`; each once but in `PruMergePlus` with `parity`.
        centres: Places in the pool into which others are merged, `(batch, n)`; from column `number` on none is.
        number: Centres of each picture, `(batch, 1)`; the token of the rest stands in column `number`.
        places: Distinct patches whose places the tokens take, `(batch, n)`.
        rest: What of the pool goes into the token of the rest, `(batch, patches)`.
    """

    pool: torch.Tensor
    centres: torch.Tensor
    number: torch.Tensor
    places: torch.Tensor
    rest: torch.Tensor


class _Part(NamedTuple):
    """Tokens of one view: features `(batch, n, encoder_dim)`, places and whether they are there `(batch, n)`."""

    features: torch.Tensor
    tokens: torch.Tensor
    valid: torch.Tensor


@register
@dataclass(frozen=True)
class PruMerge(Pruner):
    """Keeps the patches with the highest CLS attention in the last encoder layer, and merges others into them.

    Every kept patch gets the features of the patches with the most similar keys added, by their attention; one more
    token is the sum, by attention, of all patches that were not kept. Attention and keys are of full width, heads taken
    together; features are those before the projector. A tower without CLS token has the attention of its patches on
    average in its stead. Each encoder view is compressed with its share of the budget, in
    proportion to its patches.

    A budget counts the token of the rest, and is that token alone when it is 1. Without a budget as many patches are
    kept as have outlying attention by the quartile rule; at least one, where the paper's code would keep none.

    Tokens of a view come best first, the token of the rest last; it takes the place of the best patch that was not
    kept. Newline tokens are kept, at the end, only when the budget exceeds the patches. The published numbers are of
    models that were trained further with the method.

    Args:
        neighbours: Patches merged into each kept one, at least 0.
        average: Weighted means, as the paper's text has them, over a kept patch and its neighbours and over the rest.
            By default sums, as in the paper's code, in which a kept patch counts once.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> PruMerge().encoder_layers, PruMerge().is_adaptive
        ((-1,), True)
    """

    neighbours: int = 32
    average: bool = False

    name = "prumerge"
    paper = "LLaVA-PruMerge, ICCV 2025, arXiv 2403.15388"
    year = 2025
    summary = "Keeps what the encoder's CLS token attends to, merged with what has similar keys, and a sum of the rest."
    whole_images = True
    signals = frozenset({Signal.ENCODER_LAYERS, Signal.ENCODER_FEATURES})
    merges = True
    golden = "prumerge.npz"

    def __post_init__(self) -> None:
        check_integer(self.name, "neighbours", self.neighbours, low=0)
        check_flag(self.name, "average", self.average)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The last layer."""
        return (-1,)

    def choose(self, attention: torch.Tensor, budget: int) -> Choice:
        """The tokens that are made of one view, `attention` `(batch, patches)`, for its share of the budget."""
        number = torch.full((len(attention), 1), budget - 1, device=attention.device)
        return first_of(stable_topk(attention, attention.shape[1]), number, budget)

    def choose_adaptive(self, attention: torch.Tensor) -> Choice:
        """The same without a budget: as many as have outlying attention."""
        order = stable_topk(attention, attention.shape[1])
        number = outliers(attention)
        return first_of(order, number, int(number.max()) + 1)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Compresses each view and lines the results up."""
        views, shares, separators = context.by_view(keep)
        attention = as_float(context.encoder_layer(0).joint_attention)
        parts = [
            self._merge(context, view, self.choose(attention[:, view], share))
            for view, share in zip(views, shares, strict=True)
            if share
        ]
        projected = context.project(torch.cat([part.features for part in parts], dim=1))
        return Reduction(
            torch.cat([*(part.tokens for part in parts), separators], dim=1),
            features=torch.cat([projected, take(context.hidden, separators).to(projected.dtype)], dim=1),
            ordered=True,
        )

    def reduce_adaptive(self, context: Context) -> Reduction:
        """Compresses each view to the number of tokens that its attention asks for."""
        attention = as_float(context.encoder_layer(0).joint_attention)
        parts = [
            self._merge(context, view, self.choose_adaptive(attention[:, view]))
            for view in context.view_tokens
            if len(view)
        ]
        features, tokens, valid = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        return Reduction(tokens, features=context.project(features), valid=valid, ordered=True)

    def _merge(self, context: Context, view: torch.Tensor, choice: Choice) -> _Part:
        """Makes the chosen tokens of one view."""
        layer, pool = context.encoder_layer(0), view[choice.pool]
        features, keys = take(context.encoder_features, pool), take(layer.keys.transpose(1, 2).flatten(2), pool)
        attention = layer.joint_attention.gather(1, pool)
        merged = neighbour_merge(features, keys, attention, choice.centres, self.neighbours, average=self.average)
        rest = weighted_rest(features, attention, choice.rest, average=self.average)
        column = torch.arange(choice.places.shape[1], device=view.device)
        return _Part(
            torch.where((column == choice.number).unsqueeze(-1), rest, merged),
            view[choice.places],
            column <= choice.number,
        )


def outliers(attention: torch.Tensor) -> torch.Tensor:
    """How many patches of a view have outlying attention, at least one, `(batch, 1)`."""
    return iqr_outlier_count(attention).clamp_min(1).unsqueeze(1)


def first_of(order: torch.Tensor, number: torch.Tensor, tokens: int) -> Choice:
    """The first `number` `(batch, 1)` of all patches in `order`; the next one's place goes to the token of the rest.

    Args:
        order: All patches of a view, `(batch, patches)`.
        number: Centres of each picture, `(batch, 1)`.
        tokens: Columns of the choice, the largest `number` and one more; fewer only where there are no more patches.
    """
    is_rest = torch.arange(order.shape[1], device=order.device) >= number
    rest = torch.zeros_like(is_rest).scatter(1, order, is_rest)
    pool = torch.arange(order.shape[1], device=order.device).expand(order.shape[0], -1)
    return Choice(pool, order[:, :tokens], number, order[:, :tokens], rest)
