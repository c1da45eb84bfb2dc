"""Determinantal point processes: tokens that are relevant and unlike each other."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.ops.checks import check_keep
from vtprune.ops.topk import stable_topk

_SPANNED = 1e-9


@torch.no_grad()
def dpp_map(tokens: torch.Tensor, relevance: torch.Tensor, keep: int) -> torch.Tensor:
    """Picks tokens greedily so that the determinant of their kernel `diag(r) S diag(r)` stays large.

    CDPruner (arXiv 2506.10967), with the cosines of tokens as `S`: each pick has the largest part that the picked ones
    do not span. A pick adds one row to a Cholesky factor (Chen et al., NeurIPS 2018, algorithm 1), `O(picks tokens)`
    after the kernel's `O(tokens^2 dim)`. In float64, and compared in float32, so that rounding does not choose between
    equal tokens.

    Differs from the paper's code where the picked tokens span all others, as they do beyond the width of the tokens:
    there the rest of the budget goes to the highest relevance, where the code takes roots of negative numbers. A token
    counts as spanned when `1e-9` of its own entry is left; zero vectors are so from the start.

    Args:
        tokens: `(batch, tokens, dim)`.
        relevance: `(batch, tokens)`, usually 0 or above.
        keep: Tokens to pick, 1 to `tokens`.

    Returns:
        `(batch, keep)` int64 in the order of picking.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> states = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
        >>> dpp_map(states, torch.tensor([[1.0, 0.9, 0.5]]), 3).tolist()
        [[0, 2, 1]]
    """
    batch, count, _ = tokens.shape
    check_keep(keep, count)
    unit = normalize(tokens.double(), dim=-1)
    relevance = relevance.double()
    kernel = relevance.unsqueeze(-1) * (unit @ unit.mT) * relevance.unsqueeze(-2)
    left = kernel.diagonal(dim1=1, dim2=2)
    floor = left * _SPANNED
    factor = kernel.new_zeros((batch, keep, count))
    picks, gains = [], []
    for step in range(keep):
        # A picked token spans itself, and a comparison with NaN is false: neither can be picked from here on.
        left = torch.where(left > floor, left, -torch.inf)
        pick = left.float().argmax(dim=1, keepdim=True)
        gain = left.gather(1, pick)
        column = pick.unsqueeze(-1)
        row = kernel.gather(1, column.expand(-1, -1, count))
        done = factor[:, :step]
        row = (row - done.gather(2, column.expand(-1, step, -1)).mT @ done).squeeze(1) * gain.rsqrt()
        factor[:, step] = row
        left = left - row.square()
        picks.append(pick)
        gains.append(gain)
    return _fill_up(torch.cat(picks, dim=1), torch.cat(gains, dim=1) > 0, relevance)


def _fill_up(picks: torch.Tensor, is_real: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Puts the most relevant tokens that were not picked in the place of the picks that are not real, at the end."""
    taken = torch.zeros_like(relevance).scatter_add(1, picks, is_real.to(relevance.dtype)) > 0
    spare = stable_topk(relevance.masked_fill(taken, -torch.inf), picks.shape[1])
    turn = ((~is_real).cumsum(dim=1) - 1).clamp_min(0)
    return torch.where(is_real, picks, spare.gather(1, turn))
