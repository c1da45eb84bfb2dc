"""Tokens that differ from a few pivots."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep


@torch.no_grad()
def unlike_pivots(
    tokens: torch.Tensor, pivots: torch.Tensor, count: int, *, live: torch.Tensor, taken: torch.Tensor
) -> torch.Tensor:
    """Picks exactly `count` tokens, for one pivot after another those with the lowest cosine to it.

    DART (arXiv 2502.11494). The pivots of a picture have equal shares of `count`; what does not divide goes to its
    first pivots, one token each, where the paper's code leaves it out. What one pivot picked is gone for the next, so
    that their order matters: it is the given one. The paper's code follows the hash order of a set.

    Args:
        tokens: `(batch, tokens, dim)`.
        pivots: Their states in the order of picking, `(batch, pivots, dim)`.
        count: Tokens to pick, 0 to the number that is not taken.
        live: Pivots that pick, `(batch, pivots)`, one or more in each row; the others may hold anything.
        taken: Tokens that may not be picked, `(batch, tokens)`.

    Returns:
        `(batch, tokens)` booleans.

    Raises:
        ValueError: `count` is above the number of tokens.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
        >>> unlike_pivots(
        ...     tokens, tokens[:, :1], 2, live=torch.tensor([[True]]), taken=torch.tensor([[True, False, False, False]])
        ... ).tolist()
        [[False, False, True, True]]
    """
    check_keep(count, tokens.shape[1], lowest=0)
    if use_kernels(tokens):
        from vtprune.kernels.pivots import pick_unlike

        return pick_unlike(_cosines(pivots, tokens), live, taken, count)
    cosine = _cosines(pivots, tokens)
    number = live.sum(dim=1, keepdim=True).clamp_min(1)
    place = live.cumsum(dim=1) - 1
    share = (torch.div(count, number, rounding_mode="floor") + (place < count % number)).masked_fill(~live, 0)
    every = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    gone = taken
    for pivot in range(pivots.shape[1]):
        order = cosine[:, pivot].masked_fill(gone, torch.inf).sort(dim=1, stable=True).indices
        rank = torch.empty_like(order).scatter(1, order, every)
        gone = gone | (rank < share[:, pivot : pivot + 1])
    return gone & ~taken


def _cosines(pivots: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    if use_kernels(tokens) and tokens.element_size() == 2 and pivots.dtype == tokens.dtype:
        from vtprune.kernels.gram import cross_cosine

        return cross_cosine(pivots, tokens)
    # float64 also keeps autocast from carrying out the product in half precision.
    return normalize(pivots.double(), dim=-1) @ normalize(tokens.double(), dim=-1).mT
