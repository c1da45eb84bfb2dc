"""Recovering dropped tokens: a few of them take in their neighbours, one more sums up the others."""

from __future__ import annotations

import torch

from vtprune.ops.checks import check_keep
from vtprune.ops.gather import take
from vtprune.ops.rounded_cosine import rounded_cosine
from vtprune.ops.topk import stable_topk


def recycle(
    features: torch.Tensor,
    keys: torch.Tensor,
    attention: torch.Tensor,
    bonus: torch.Tensor,
    centres: int,
    *,
    cluster: int = 32,
    summary: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes a few tokens of many: the most attended ones with their neighbours, and a sum of all others.

    Recoverable Compression (arXiv 2409.01179). Each centre adds to itself its `cluster` best neighbours, by the cosine
    of keys plus a bonus, each times its attention; neighbours may be centres, and serve any number of them. As in the
    paper's code the weights do not add up to 1, so that a centre is corrected rather than averaged.

    Args:
        features: `(batch, tokens, dim)`.
        keys: `(batch, tokens, any)`.
        attention: What ranks centres and weighs everything, `(batch, tokens)`.
        bonus: What is added to the cosine with a neighbour, `(batch, tokens)`.
        centres: How many of the highest attention, 0 to `tokens`.
        cluster: Neighbours of a centre; all other tokens where there are fewer.
        summary: Whether the sum of all tokens but the centres, each times its attention, comes last.

    Returns:
        New tokens `(batch, centres + summary, dim)` in the dtype of `features`, centres by falling attention, and the
        tokens whose places they take, `(batch, centres + summary)`: the summary that of the last token that is no
        centre.

    Raises:
        ValueError: `centres` is out of range, or leaves nothing to sum up.

    Example:
        >>> states, attention = torch.tensor([[[1.0], [2.0], [4.0]]]), torch.tensor([[0.5, 0.25, 0.25]])
        >>> made, places = recycle(states, torch.ones(1, 3, 1), attention, attention, 1, cluster=1)
        >>> made.flatten().tolist(), places.tolist()
        ([1.5, 1.5], [[0, 2]])
    """
    tokens = features.shape[1]
    check_keep(centres, tokens - int(summary), lowest=0)
    chosen = stable_topk(attention, centres)
    # float64 also keeps autocast from carrying out the products in half precision.
    states, weights = features.double(), attention.double()
    likeness = rounded_cosine(take(keys, chosen), keys) + bonus.double().unsqueeze(1)
    likeness = likeness.scatter(2, chosen.unsqueeze(2), -torch.inf)
    nearest = stable_topk(likeness, max(0, min(cluster, tokens - 1)))
    shares = weights.unsqueeze(1).expand_as(likeness).gather(2, nearest)
    made = take(states, chosen) + torch.zeros_like(likeness).scatter(2, nearest, shares) @ states
    if not summary:
        return made.to(features.dtype), chosen
    is_centre = torch.zeros_like(weights, dtype=torch.bool).scatter(1, chosen, True)
    total = weights.masked_fill(is_centre, 0).unsqueeze(1) @ states
    last = torch.arange(tokens, device=chosen.device).masked_fill(is_centre, -1).amax(dim=1, keepdim=True)
    return torch.cat([made, total], dim=1).to(features.dtype), torch.cat([chosen, last], dim=1)
