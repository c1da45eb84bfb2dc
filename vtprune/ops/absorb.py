"""Averaging every dropped token into the kept token that is most like it."""

from __future__ import annotations

import torch

from vtprune.ops.gather import take
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
    targets, others = take(features, kept).double(), take(features, dropped).double()
    places = torch.arange(kept.shape[1], device=kept.device)
    assigned = rounded_cosine(others, targets).argmax(dim=2)
    member = (assigned.unsqueeze(-1) == places).double()
    count = 1 + member.sum(dim=1).unsqueeze(-1)
    return ((targets + member.mT @ others) / count).to(features.dtype), assigned
