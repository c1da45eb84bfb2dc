"""HiRED: an attention budget for each crop, spent on what a late encoder layer attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.anyres_quota import cell_owner, sum_by_owner, weighted_shares, within_quota
from vtprune.ops.checks import check_share
from vtprune.ops.gather import as_float, split_by
from vtprune.ops.share import largest_remainder
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_flag
from vtprune.registry import register


@register
@dataclass(frozen=True)
class HiRED(Pruner):
    """Keeps the patches with the highest CLS attention in a late layer; an early layer decides what each crop gets.

    The thumbnail gets its share of the budget. Its patches with the highest CLS attention in the encoder's first layer
    are marked, and crops share what is left by the marked patches in their parts of the picture. Attention to choose by
    is that of the layer LLaVA's features come from, the last but one. On one view, or on views that are no thumbnail
    with crops, that choice is all there is: several views then share the budget by their patches. Newline tokens are
    kept only when the budget exceeds the patches.

    The paper's code cuts the thumbnail, read in raster order, into runs of equal length and takes these for the crops,
    and rounds every crop's quota down, so that a few tokens of the budget are lost. Here a crop's part is where it lies
    in the picture, and the budget is met exactly. With `parity` both are as in that code: fewer tokens than the budget
    come back, counted by `Reduction.valid`, which costs a host synchronisation.

    Args:
        alpha: Share of the budget for the thumbnail, in [0, 1], rounded down; the other share of the thumbnail's
            patches, rounded down, is marked.
        parity: Crops and quotas as in the paper's code.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> HiRED().encoder_layers
        (0, -2)
    """

    alpha: float = 0.5
    parity: bool = False

    name = "hired"
    paper = "HiRED, AAAI 2025, arXiv 2408.10945"
    year = 2025
    summary = "Shares the budget among crops by early CLS attention and keeps the highest late CLS attention in each."
    whole_images = True
    signals = frozenset({Signal.ENCODER_LAYERS})
    golden = "hired.npz"

    def __post_init__(self) -> None:
        check_share(self.name, "alpha", self.alpha)
        check_flag(self.name, "parity", self.parity)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The layer that shares the budget and the one that chooses."""
        return (0, -2)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the highest late attention within each view's quota."""
        views = context.view_tokens
        sizes = [len(view) for view in views]
        patches = sum(sizes)
        budget = min(keep, patches)
        late = as_float(context.encoder_layer(1).attention).mean(dim=1)
        separators = split_by(context.is_patch, patches)[1][:, : keep - budget]
        if context.layout.crops == (0, 0):
            shares = largest_remainder(sizes, budget)
            picks = [view[stable_topk(late[:, view], share)] for view, share in zip(views, shares, strict=True)]
            return Reduction(torch.cat([*picks, separators], dim=1))
        overview = min(max(int(budget * self.alpha), budget - sum(sizes[1:])), sizes[0])
        marked = self._marked(context, views[0])
        quotas = self._quotas(marked, budget - overview, sizes[1:])
        thumbnail = views[0][stable_topk(late[:, views[0]], overview)]
        flags = torch.zeros_like(late, dtype=torch.bool).scatter(1, torch.cat([thumbnail, separators], dim=1), True)
        for crop, view in enumerate(views[1:]):
            flags = flags.index_copy(1, view, within_quota(late[:, view], quotas[:, crop]))
        kept = split_by(flags, keep)[0]
        return Reduction(kept, valid=flags.gather(1, kept) if self.parity else None)

    def _marked(self, context: Context, thumbnail: torch.Tensor) -> torch.Tensor:
        """Marked patches of the thumbnail in the part of each crop, `(batch, crops)`."""
        rows, columns = context.layout.crops
        height, width = context.layout.view_rectangles[0]
        early = as_float(context.encoder_layer(0).attention).mean(dim=1)[:, thumbnail]
        marks = torch.zeros_like(early).scatter(1, stable_topk(early, int(len(thumbnail) * (1 - self.alpha))), 1)
        if self.parity:
            owner = torch.arange(len(thumbnail), device=thumbnail.device) * (rows * columns) // len(thumbnail)
        else:
            # A patch belongs to the crop that its centre falls into.
            row_ends, column_ends = context.layout.crop_ends
            owner = cell_owner(
                height,
                width,
                [end * height / row_ends[-1] - 0.5 for end in row_ends[:-1]],
                [end * width / column_ends[-1] - 0.5 for end in column_ends[:-1]],
                thumbnail.device,
            )
        return sum_by_owner(marks, owner, rows * columns)

    def _quotas(self, marked: torch.Tensor, budget: int, sizes: list[int]) -> torch.Tensor:
        """Tokens of each crop, `(batch, crops)`; with `parity` possibly more than the crop has."""
        if not self.parity:
            return weighted_shares(marked, budget, sizes)
        return (marked / marked.sum(dim=1, keepdim=True).clamp_min(1) * budget).long()
