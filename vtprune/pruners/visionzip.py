"""VisionZip: tokens that the encoder attends to, and the rest merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_share
from vtprune.ops.gather import as_float, split_by, take
from vtprune.ops.merge import merge_into_targets
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.registry import register


class _Block(NamedTuple):
    """Encoder features `(batch, n, encoder_dim)` and the tokens `(batch, n)` whose places they take."""

    features: torch.Tensor
    tokens: torch.Tensor


@register
@dataclass(frozen=True)
class VisionZip(Pruner):
    """Keeps the CLS token and the patches it attends to, and merges the other patches into contextual tokens.

    Works on each encoder view with its share of the budget, in proportion to its tokens, on features before the
    projector. Of one view come CLS, dominant patches in raster order, contextual tokens. Of several views the first is
    the thumbnail and comes so; then the dominant patches of all others in raster order, their CLS tokens, their
    contextual tokens. A CLS token takes the place of the lowest patch that no other token of its view stands for.
    Newline tokens are kept, at the end, only when the budget exceeds the patches. Towers without CLS attend on average,
    and one more dominant patch stays in its place.

    Args:
        contextual: Share of each view's budget for contextual tokens, in [0, 1], rounded half to even but leaving one
            for CLS. The default gives the paper's 54 + 10, 108 + 20 and 162 + 30, dominant ones counting CLS.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> VisionZip().split(64), VisionZip().split(192), VisionZip().split(1)
        ((54, 10), (162, 30), (1, 0))
    """

    contextual: float = 10 / 64

    name = "visionzip"
    paper = "VisionZip, CVPR 2025, arXiv 2412.04467"
    year = 2025
    summary = "Keeps what the encoder's CLS token attends to and merges the rest into a few tokens."
    whole_images = True
    signals = frozenset({Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_FEATURES})
    optional_signals = frozenset({Signal.ENCODER_CLS})
    merges = True
    golden = "visionzip.npz"

    def __post_init__(self) -> None:
        check_share(self.name, "contextual", self.contextual)

    def split(self, budget: int) -> tuple[int, int]:
        """Dominant tokens (with CLS) and contextual tokens for a view's budget."""
        contextual = min(round(budget * self.contextual), budget - 1)
        return budget - contextual, contextual

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Compresses each view and lines the results up."""
        views, shares, separators = context.by_view(keep)
        first, *crops = (
            self._compress(context, index, view, share)
            for index, (view, share) in enumerate(zip(views, shares, strict=True))
            if share
        )
        blocks = list(first)
        if crops:
            cls, dominant, contextual = zip(*crops, strict=True)
            features, tokens = torch.cat([d.features for d in dominant], 1), torch.cat([d.tokens for d in dominant], 1)
            order = tokens.argsort(dim=1)
            blocks += [_Block(take(features, order), tokens.gather(1, order)), *cls, *contextual]
        projected = context.project(torch.cat([block.features for block in blocks], dim=1))
        return Reduction(
            torch.cat([*(block.tokens for block in blocks), separators], dim=1),
            features=torch.cat([projected, take(context.hidden, separators).to(projected.dtype)], dim=1),
            ordered=True,
        )

    def _compress(self, context: Context, index: int, view: torch.Tensor, budget: int) -> tuple[_Block, _Block, _Block]:
        """CLS, dominant and contextual tokens of one view."""
        features = context.encoder_features[:, view]
        dominant, contextual = self.split(budget)
        patches = dominant - int(context.gives_cls)
        top = stable_topk(as_float(context.encoder_attention[:, :, view]).sum(dim=1), patches)
        is_dominant = torch.zeros(features.shape[:2], dtype=torch.bool, device=view.device).scatter(1, top, True)
        picked, rest = split_by(is_dominant, patches)
        metric = take(as_float(context.encoder_keys[:, :, view]).mean(dim=1), rest)
        merged, targets, _ = merge_into_targets(take(features, rest), metric, contextual)
        centres = rest[:, targets]
        taken = is_dominant.scatter(1, centres, True).to(torch.uint8)
        if context.gives_cls:
            cls, place = context.encoder_cls[:, index : index + 1], taken.argmin(1, keepdim=True)
        else:
            cls, place = features[:, :0], taken[:, :0].long()
        return (
            _Block(cls.to(features.dtype), view[place]),
            _Block(take(features, picked), view[picked]),
            _Block(merged, view[centres]),
        )
