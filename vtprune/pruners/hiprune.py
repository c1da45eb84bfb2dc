"""HiPrune: what a middle encoder layer looks at, its surroundings, and what a deep layer looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer, check_share
from vtprune.ops.gather import as_float
from vtprune.ops.neighbours import grid_neighbours
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Depths, Pruner, Reduction, Signal, check_flag, scale_layers
from vtprune.registry import register

_PAPER_LAYER, _PAPER_DEPTH = 8, 24


@register
@dataclass(frozen=True)
class HiPrune(Pruner):
    """Keeps anchors by the attention they receive in a middle encoder layer, their neighbours, and registers.

    Anchors have the highest mean attention over all queries in the object layer; their neighbours are the patches left,
    right, above and below; registers fill the budget by the same attention in the layer that LLaVA's features come
    from, the last but one. If anchors and neighbours exceed a small budget, anchors go first, then the deep attention
    decides. Several encoder views share the budget by their patches and are treated one by one; a neighbour lies in the
    same view. Newline tokens are kept only when the budget exceeds the patches.

    The paper's code takes the ends of neighbouring rows for neighbours, and at the first and last row the first and the
    last patch for the one that is missing. Here such neighbours do not exist, unless `parity` is set.

    Args:
        alpha: Share of each view's budget for anchors and neighbours, in [0, 1]; a fifth of it, rounded half to even,
            are anchors.
        object_layer: Encoder layer of the anchors, counted from 0. `None` is layer 8 of CLIP's 24, the paper's ninth,
            scaled to the depth of the tower; for Qwen2.5-VL's 32 layers the paper takes 15.
        parity: Neighbours as in the paper's code.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> HiPrune().fit(Depths(decoder=32, encoder=12)).encoder_layers
        (4, -2)
    """

    alpha: float = 0.1
    object_layer: int | None = None
    parity: bool = False

    name = "hiprune"
    paper = "HiPrune, AAAI 2026, arXiv 2508.00553"
    year = 2026
    summary = "Keeps what a middle encoder layer attends to with its neighbours, then what a deep layer attends to."
    whole_images = True
    signals = frozenset({Signal.ENCODER_LAYERS})
    golden = "hiprune.npz"

    def __post_init__(self) -> None:
        check_share(self.name, "alpha", self.alpha)
        if self.object_layer is not None:
            check_integer(self.name, "object_layer", self.object_layer, low=0)
        check_flag(self.name, "parity", self.parity)

    def fit(self, depths: Depths) -> Self:
        """The same method with the object layer at the paper's relative depth, unless it was given."""
        if self.object_layer is not None:
            return self
        (layer,) = scale_layers((_PAPER_LAYER,), depths.encoder, _PAPER_DEPTH, lowest=0)
        return replace(self, object_layer=layer)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The object layer and the deep layer."""
        return (_PAPER_LAYER if self.object_layer is None else self.object_layer, -2)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps anchors, neighbours and registers of each view."""
        views, shares, separators = context.by_view(keep)
        middle, deep = (as_float(context.encoder_layer(number).received).mean(dim=1) for number in range(2))
        kept = [
            view[self._pick(middle[:, view], deep[:, view], shape, share)]
            for view, shape, share in zip(views, context.layout.view_rectangles, shares, strict=True)
        ]
        return Reduction(torch.cat([*kept, separators], dim=1))

    def _pick(self, middle: torch.Tensor, deep: torch.Tensor, shape: tuple[int, int], budget: int) -> torch.Tensor:
        """The patches of one view that stay, `(batch, budget)`."""
        anchors = stable_topk(middle, min(round(budget * self.alpha / 5), budget))
        around = grid_neighbours(anchors, *shape, wrap=self.parity).flatten(1)
        rank = torch.zeros_like(deep, dtype=torch.uint8).scatter(1, around, 1).scatter(1, anchors, 2)
        by_deep = stable_topk(deep, deep.shape[1])
        return by_deep.gather(1, stable_topk(rank.gather(1, by_deep), budget))
