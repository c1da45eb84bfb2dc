"""Thinning a ranked list of tokens by dropping near-duplicates."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gram import gram


@torch.no_grad()
def drop_redundant(features: torch.Tensor, keep: int, *, per_round: int = 8) -> torch.Tensor:
    """Drops a few redundant members of a list each round until `keep` are left.

    The rule of VisPruner (arXiv 2412.01818), used by FlashVLM (arXiv 2512.20561) too: members at even positions are
    compared with those at odd ones; the `per_round` even members with the highest cosine to any odd member go; the
    next list is the surviving even members by falling similarity, then the odd ones. All cosines are computed once, in
    float64 (by kernels, of half precision, in float32): the split is positional, so that one swapped near-tie changes
    many later choices. Unlike the official code an odd number of members is allowed.

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
    if keep in (0, members):
        return torch.arange(keep, device=features.device).expand(batch, -1)
    if use_kernels(features):
        return _with_kernels(features, keep, per_round)
    order = torch.arange(members, device=features.device).expand(batch, -1)
    cosine = _cosines(features)
    lines, first = cosine.flatten(0, 1), members * torch.arange(batch, device=cosine.device).unsqueeze(1)
    while order.shape[1] > keep:
        even, odd = order[:, 0::2], order[:, 1::2]
        dropped = min(per_round, order.shape[1] - keep, even.shape[1])
        # Whole rows are read, which lie in line.
        rows = lines.index_select(0, (odd + first).flatten()).view(batch, -1, members)
        closest = rows.amax(dim=1).gather(1, even)
        falling = closest.sort(dim=1, descending=True, stable=True).indices
        order = torch.cat([even.gather(1, falling[:, dropped:]), odd], dim=1)
    return order


def _with_kernels(features: torch.Tensor, keep: int, per_round: int) -> torch.Tensor:
    from vtprune.kernels.gram import cosine_matrix, pictures_at_once
    from vtprune.kernels.thinning import thin

    half = features.element_size() == 2
    at_once = pictures_at_once(features.shape[1], 4 if half else 8)
    parts = (features[first : first + at_once] for first in range(0, len(features), at_once))
    thinned = [thin(cosine_matrix(part) if half else _cosines(part), keep, per_round) for part in parts]
    return thinned[0] if len(thinned) == 1 else torch.cat(thinned)


def _cosines(features: torch.Tensor) -> torch.Tensor:
    return gram(normalize(features.double(), dim=-1))
