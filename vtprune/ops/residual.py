"""Thinning a ranked list of tokens by dropping near-duplicates."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.ops.checks import check_keep


@torch.no_grad()
def drop_redundant(features: torch.Tensor, keep: int, *, per_round: int = 8) -> torch.Tensor:
    """Drops a few redundant members of a list each round until `keep` are left.

    The rule of VisPruner (arXiv 2412.01818), used by FlashVLM (arXiv 2512.20561) too: members at even positions are
    compared with those at odd ones; the `per_round` even members with the highest cosine to any odd member go; the
    next list is the surviving even members by falling similarity, then the odd ones. All cosines are computed once, in
    float64: the split is positional, so that one swapped near-tie changes many later choices. Unlike the official code
    an odd number of members is allowed.

    Args:
        features: Members in ranked order, `(batch, members, dim)`.
        keep: Members to keep, 0 to `members`.
        per_round: Members dropped each round.

    Returns:
        Positions in the given list, `(batch, keep)`, in the order of the last round.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> drop_redundant(torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]]]), 3).tolist()
        [[2, 1, 3]]
    """
    batch, members, _ = features.shape
    check_keep(keep, members, lowest=0)
    order = torch.arange(members, device=features.device).expand(batch, -1)
    if keep == 0:
        return order[:, :0]
    unit = normalize(features.double(), dim=-1)
    cosine = unit @ unit.mT
    picture = torch.arange(batch, device=features.device).view(-1, 1, 1)
    while order.shape[1] > keep:
        even, odd = order[:, 0::2], order[:, 1::2]
        dropped = min(per_round, order.shape[1] - keep, even.shape[1])
        closest = cosine[picture, even.unsqueeze(2), odd.unsqueeze(1)].amax(dim=2)
        falling = closest.sort(dim=1, descending=True, stable=True).indices
        order = torch.cat([even.gather(1, falling[:, dropped:]), odd], dim=1)
    return order
