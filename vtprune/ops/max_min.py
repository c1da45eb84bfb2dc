"""Max-min diversity: each pick is the token farthest from all picked ones."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gather import as_float
from vtprune.ops.gram import gram

# Where distances are from 0 to 2: below all of them, and in this order.
_NO_NUMBER, _ABSENT = -1.0, -2.0


@torch.no_grad()
def max_min(tokens: torch.Tensor, keep: int, present: torch.Tensor | None = None) -> torch.Tensor:
    """Picks `keep` tokens greedily so that the smallest cosine distance among them stays large.

    DivPrune (arXiv 2503.02175): the first pick is the token whose nearest other token is farthest; every later one
    maximises `min over picked i of d(i, j)`, with `d = 1 - cosine`. The running minimum is updated with one row of the
    distance matrix a pick, `O(tokens^2 dim + keep tokens)`, where the paper's code reduces a growing block anew.

    Differs from the paper's code where that is undefined: a zero vector is at distance 1 from everything, a picked
    token cannot come again among duplicates, a single token is its own first pick, and the two directions of a distance
    are made equal, so that mutual nearest neighbours tie and the lower index wins. A token that holds what is no number
    comes after all others and is nobody's neighbour.

    Args:
        tokens: `(batch, tokens, dim)`.
        keep: Tokens to pick, 1 to `tokens`.
        present: `(batch, tokens)` booleans; the others are picked last of all, and nothing depends on them.

    Returns:
        `(batch, keep)` int64 in the order of picking.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> max_min(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]]), 2).tolist()
        [[2, 0]]
    """
    check_keep(keep, tokens.shape[1])
    return _with_kernels(tokens, keep, present) if use_kernels(tokens) else _picks(tokens, keep, present)


def _picks(tokens: torch.Tensor, keep: int, present: torch.Tensor | None) -> torch.Tensor:
    cosine = _cosines(tokens)
    nearest = _before_any_pick(cosine, present)
    closest = _closest_(cosine, nearest)
    distance = cosine.neg_().add_(1)
    # A picked token is nearer to a pick than any other.
    distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    lines, first = distance.flatten(0, 1), distance.shape[1] * torch.arange(len(distance), device=distance.device)
    pick = torch.where(nearest > 0, 1 - closest, nearest).argmax(dim=1)
    picks = [pick]
    for _ in range(keep - 1):
        nearest = torch.minimum(nearest, lines.index_select(0, pick + first))
        pick = nearest.argmax(dim=1)
        picks.append(pick)
    return torch.stack(picks, dim=1)


def _with_kernels(tokens: torch.Tensor, keep: int, present: torch.Tensor | None) -> torch.Tensor:
    from vtprune.kernels.gram import likeness, pictures_at_once
    from vtprune.kernels.max_min import pick_farthest

    at_once = pictures_at_once(tokens.shape[1], max(4, tokens.element_size()))
    if len(tokens) > at_once:
        parts = [slice(first, first + at_once) for first in range(0, len(tokens), at_once)]
        return torch.cat(
            [_with_kernels(tokens[part], keep, None if present is None else present[part]) for part in parts]
        )
    if tokens.element_size() == 2:
        return pick_farthest(*likeness(tokens, present), keep, present)
    cosine = _cosines(tokens)
    closest = _closest_(cosine.clone(), _before_any_pick(cosine, present))
    return pick_farthest(cosine, closest.unsqueeze(1), keep, present)


def _cosines(tokens: torch.Tensor) -> torch.Tensor:
    # Autocast would carry out the product in half precision even for float32 operands.
    with torch.autocast(tokens.device.type, enabled=False):
        unit = normalize(as_float(tokens), dim=-1)
        return gram(unit)


def _before_any_pick(cosine: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Distance of each token to the nearest pick while there is none, `(batch, tokens)`."""
    itself = cosine.diagonal(dim1=1, dim2=2)
    nearest = torch.full_like(itself, torch.inf).masked_fill_(itself.isnan(), _NO_NUMBER)
    return nearest if present is None else nearest.masked_fill_(~present, _ABSENT)


def _closest_(cosine: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """Highest cosine of each token to others that count, `(batch, tokens)`; takes all else out of the matrix."""
    limit = torch.where(nearest < 0, -torch.inf, torch.inf)
    cosine.nan_to_num_(nan=-torch.inf).diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return torch.minimum(cosine, limit.unsqueeze(1), out=cosine).amax(dim=2)
