"""FasterVLM: the patches that the encoder attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.gather import as_float
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.registry import register


@register
@dataclass(frozen=True)
class FasterVLM(Pruner):
    """Keeps the patches with the highest attention from the encoder's CLS token, averaged over heads.

    Several encoder views share the budget by their patches, so that scores are compared within one view only. For
    towers without CLS the attention is the mean over all patches. Newline tokens are kept only when the budget exceeds
    the patches.

    Example:
        >>> FasterVLM().layers
        (0,)
    """

    name = "fastervlm"
    paper = "FasterVLM, arXiv 2412.01818"
    year = 2024
    summary = "Keeps the tokens that the encoder's CLS token attends to most."
    whole_images = True
    signals = frozenset({Signal.ENCODER_ATTENTION})
    golden = "fastervlm.npz"

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the highest scores of each view."""
        views, shares, separators = context.by_view(keep)
        attention = as_float(context.encoder_attention).mean(dim=1)
        picks = [view[stable_topk(attention[:, view], share)] for view, share in zip(views, shares, strict=True)]
        return Reduction(torch.cat([*picks, separators], dim=1))
