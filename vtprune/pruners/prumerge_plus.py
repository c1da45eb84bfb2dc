"""LLaVA-PruMerge+: PruMerge with evenly spaced patches added."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.ops.checks import check_share
from vtprune.ops.gather import split_by
from vtprune.ops.topk import stable_topk
from vtprune.pruner import check_flag
from vtprune.pruners.prumerge import Choice, PruMerge, first_of, outliers
from vtprune.registry import register


@register
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """Keeps the patches with the highest CLS attention and evenly spaced ones, and merges others into them.

    All else is as in `PruMerge`. Without a budget, every patch with outlying attention is kept, then what is not kept
    yet of a regular sample in raster order, three times as dense: with 36 outliers among 576 every fifth patch.

    With a budget, evenly spaced patches are taken from those that attention did not choose, so that none is kept twice
    and the count is exact. The paper's code has no such mode: with its fixed ratio, meant for training, it takes about
    as many evenly spaced patches as attended ones and keeps duplicates.

    Args:
        neighbours: Patches merged into each kept one, at least 0.
        average: Weighted means instead of sums; see `PruMerge`.
        spatial: Share of the budget, the token of the rest aside, for evenly spaced patches, in [0, 1]; rounded half to
            even but leaving one for attention. The default is the proportion without a budget, 36 to 108 of 144.
        parity: With a budget, do as the paper's code for training: half of the patches by attention, half spaced, and
            those chosen twice appear twice. The second one takes the place of a patch that was not chosen; the token of
            the rest lacks as many patches at the start of the picture. Budgets that the code cannot meet get more
            attended patches.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> PruMergePlus().split(145), PruMergePlus().split(64), PruMergePlus().split(1)
        ((36, 108), (16, 47), (0, 0))
    """

    spatial: float = 0.75
    parity: bool = False

    name = "prumerge+"
    paper = "LLaVA-PruMerge+, ICCV 2025, arXiv 2403.15388"
    summary = "PruMerge with evenly spaced patches beside those that the encoder's CLS token attends to."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, "spatial", self.spatial)
        check_flag(self.name, "parity", self.parity)

    def split(self, budget: int) -> tuple[int, int]:
        """Attended and evenly spaced patches for a view's budget, the token of the rest aside."""
        centres = budget - 1
        spaced = min(round(centres * self.spatial), max(0, centres - 1))
        return centres - spaced, spaced

    def choose(self, attention: torch.Tensor, budget: int) -> Choice:
        if self.parity:
            return _official(attention, budget)
        attended, spaced = self.split(budget)
        rank = _ranks(attention)
        others = split_by(rank < attended, attended)[1]
        step = torch.arange(spaced, device=attention.device) * others.shape[1] // max(1, spaced)
        sampled = torch.zeros_like(rank, dtype=torch.bool).scatter(1, others[:, step], True)
        number = torch.full((len(attention), 1), budget - 1, device=attention.device)
        return first_of(_order(rank, rank < attended, sampled), number, budget)

    def choose_adaptive(self, attention: torch.Tensor) -> Choice:
        patches = attention.shape[1]
        rank, attended = _ranks(attention), outliers(attention)
        # The paper's code truncates the inverse of the ratio of outliers, divides by 3 and truncates again.
        step = (patches // attended // 3).clamp_min(1)
        patch = torch.arange(patches, device=attention.device)
        # It never samples the last patch.
        sampled = (patch % step == 0) & (patch < patches - 1)
        number = ((rank < attended) | sampled).sum(dim=1, keepdim=True)
        return first_of(_order(rank, rank < attended, sampled), number, int(number.max()) + 1)


def _ranks(attention: torch.Tensor) -> torch.Tensor:
    """The rank of each patch by attention, the highest being 0."""
    return stable_topk(attention, attention.shape[1]).argsort(dim=1)


def _order(rank: torch.Tensor, attended: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """All patches: attended ones best first, other sampled ones in raster order, then what is left, best first."""
    patches = rank.shape[1]
    patch = torch.arange(patches, device=rank.device)
    return torch.where(attended, rank, torch.where(sampled, patches + patch, 2 * patches + rank)).argsort(dim=1)


def _official(attention: torch.Tensor, budget: int) -> Choice:
    """The choice of the paper's code with a fixed ratio: samples from half a step on, repeated patches and all."""
    batch, patches = attention.shape
    grids = ((size, _every(patches, patches // size)) for size in range(budget - 1, 0, -1))
    samples = next((grid for size, grid in grids if size + len(grid) < budget), range(0))
    attended = budget - 1 - len(samples)
    rank = _ranks(attention)
    spaced = torch.arange(len(samples), device=attention.device) * samples.step + samples.start
    spaced = spaced.expand(batch, -1)
    twice = rank.gather(1, spaced) < attended
    order = _order(rank, rank < attended, torch.zeros_like(rank, dtype=torch.bool).scatter(1, spaced, True))
    spare = attended + (~twice).sum(dim=1, keepdim=True) + twice.cumsum(dim=1) - 1
    best, after = order[:, :attended], order[:, budget - 1 : budget]
    centres = torch.cat([best, spaced], dim=1)
    # The code writes zeros over the chosen numbers, sorts, and drops as many as were chosen, repeated ones included.
    patch = torch.arange(patches, device=attention.device).expand(batch, -1)
    others = patch.scatter(1, centres, 0).sort(dim=1).values[:, budget - 1 :]
    return Choice(
        pool=torch.cat([centres, others], dim=1),
        centres=patch[:, :budget],
        number=torch.full((batch, 1), budget - 1, device=attention.device),
        places=torch.cat([best, torch.where(twice, order.gather(1, spare), spaced), after], dim=1),
        rest=patch >= budget - 1,
    )


def _every(patches: int, step: int) -> range:
    return range(step // 2, patches - 1, step)
