"""Max-min diversity: each pick is the token farthest from all picked ones."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.ops.checks import check_keep
from vtprune.ops.gather import as_float


@torch.no_grad()
def max_min(tokens: torch.Tensor, keep: int) -> torch.Tensor:
    """Picks `keep` tokens greedily so that the smallest cosine distance among them stays large.

    DivPrune (arXiv 2503.02175): the first pick is the token whose nearest other token is farthest; every later one
    maximises `min over picked i of d(i, j)`, with `d = 1 - cosine`. The running minimum is updated with one row of the
    distance matrix a pick, `O(tokens^2 dim + keep tokens)`, where the paper's code reduces a growing block anew.

    Differs from the paper's code where that is undefined: a zero vector is at distance 1 from everything, a picked
    token cannot come again among duplicates, a single token is its own first pick, and the two directions of a distance
    are made equal, so that mutual nearest neighbours tie and the lower index wins.

    Args:
        tokens: `(batch, tokens, dim)`.
        keep: Tokens to pick, 1 to `tokens`.

    Returns:
        `(batch, keep)` int64 in the order of picking.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> max_min(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]]), 2).tolist()
        [[2, 0]]
    """
    count = tokens.shape[1]
    check_keep(keep, count)
    # Autocast would carry out the product in half precision even for float32 operands.
    with torch.autocast(tokens.device.type, enabled=False):
        unit = normalize(as_float(tokens), dim=-1)
        distance = 1 - unit @ unit.mT
    distance = torch.minimum(distance, distance.mT)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    pick = distance.amin(dim=1).argmax(dim=1, keepdim=True)
    nearest = distance.new_full(distance.shape[:2], torch.inf).scatter_(1, pick, -torch.inf)
    picks = [pick]
    for _ in range(keep - 1):
        row = distance.gather(1, pick.unsqueeze(-1).expand(-1, -1, count)).squeeze(1)
        # fmin keeps the -inf of a picked token even against NaN.
        nearest = torch.fmin(nearest, row)
        pick = nearest.argmax(dim=1, keepdim=True)
        nearest.scatter_(1, pick, -torch.inf)
        picks.append(pick)
    return torch.cat(picks, dim=1)
