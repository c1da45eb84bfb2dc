"""Averaging every dropped token into the kept token that is most like it."""

from __future__ import annotations

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.gather import take
from vtprune.ops.merge import group_means
from vtprune.ops.rounded_cosine import rounded_cosine


def absorb(features: torch.Tensor, kept: torch.Tensor, dropped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces each kept token by the mean of itself and the dropped tokens that are most like it.

    VScan (arXiv 2505.22654): likeness is the cosine, and of equally like tokens the first in `kept` is chosen.

    Args:
        features: `(batch, tokens, dim)`.
        kept: Tokens that stay, `(batch, kept)`, at least one.
        dropped: Tokens to be merged, `(batch, dropped)`.

    Returns:
        The means `(batch, kept, dim)` in the dtype of `features`, and for each dropped token the place in `kept` of the
        one it went to, `(batch, dropped)`.

    Example:
        >>> features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]])
        >>> absorb(features, torch.tensor([[0, 1]]), torch.tensor([[2]]))
        (tensor([[[1., 0.],
                 [0., 2.]]]), tensor([[1]]))
    """
    groups = kept.shape[1]
    assigned = _cosines(take(features, dropped), take(features, kept)).argmax(dim=2)
    own = torch.arange(groups, device=kept.device).expand_as(kept)
    source = torch.full(features.shape[:2], groups, device=kept.device).scatter(1, dropped, assigned)
    return group_means(features, source.scatter(1, kept, own), groups)[0], assigned


@torch.no_grad()
def _cosines(others: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if use_kernels(others) and others.element_size() == 2:
        from vtprune.kernels.gram import cross_cosine

        return cross_cosine(others, targets)
    return rounded_cosine(others, targets)
