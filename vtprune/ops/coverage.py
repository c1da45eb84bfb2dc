"""Facility location weighted by saliency: each pick covers what the picks before it do not."""

from __future__ import annotations

import torch

from vtprune.ops.checks import check_keep
from vtprune.ops.rounded_cosine import rounded_cosine


@torch.no_grad()
def weighted_coverage(
    features: torch.Tensor,
    saliency: torch.Tensor,
    keep: int,
    *,
    sharpness: float = 1.0,
    add: bool = False,
    fill_by_saliency: bool = True,
) -> torch.Tensor:
    """Picks greedily the tokens that raise the coverage of all tokens most, each weighted by its saliency.

    SCOPE (arXiv 2510.24214): a token is covered by its highest cosine to any pick, at least 0; a candidate's gain is
    the coverage that it adds over all tokens, times a power of its saliency. One pass over the similarity matrix a
    pick. Cosines are rounded, so that a duplicate of a pick gains exactly nothing.

    Args:
        features: `(batch, tokens, dim)`.
        saliency: `(batch, tokens)`, 0 or above.
        keep: Tokens to pick, 1 to `tokens`.
        sharpness: Power of the saliency.
        add: Add that power to the coverage instead of multiplying.
        fill_by_saliency: Once no token gains anything, go on by saliency. Otherwise the lowest index comes next, as in
            the paper's code.

    Returns:
        `(batch, keep)` int64 in the order of picking.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> weighted_coverage(features, torch.tensor([[0.2, 0.5, 0.1]]), 3).tolist()
        [[1, 2, 0]]
    """
    check_keep(keep, features.shape[1])
    cosine = rounded_cosine(features, features)
    saliency = saliency.double()
    weight = saliency**sharpness
    covered = torch.zeros_like(saliency)
    picked = torch.zeros_like(saliency, dtype=torch.bool)
    picks = []
    for _ in range(keep):
        gain = (cosine - covered.unsqueeze(2)).clamp_min_(0).sum(dim=1)
        score = gain + weight if add else gain * weight
        if fill_by_saliency:
            exhausted = score.masked_fill(picked, 0).amax(dim=1, keepdim=True) <= 0
            score = torch.where(exhausted, saliency, score)
        pick = score.masked_fill(picked, -torch.inf).argmax(dim=1, keepdim=True)
        picked = picked.scatter(1, pick, True)
        row = cosine.gather(1, pick.unsqueeze(-1).expand(-1, -1, cosine.shape[2])).squeeze(1)
        covered = torch.maximum(covered, row)
        picks.append(pick)
    return torch.cat(picks, dim=1)
