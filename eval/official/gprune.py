"""G-Prune's selection: a graph of similar tokens and five steps along its edges."""

from __future__ import annotations

import torch


def gprune(features: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of one view that stay, best first, `(count,)`, and the scores of all `(tokens,)`.

    Args:
        features: Projected features, `(tokens, dim)`.
        count: Tokens to keep.
    """
    states = features.float()
    length = states.norm(dim=-1)
    unit = states / length.unsqueeze(-1)
    likeness = unit @ unit.T
    likeness = torch.where(likeness < 0.5, -float("inf"), likeness)
    walk = (likeness / 0.03).softmax(dim=-1)
    degree = (walk != 0).sum(dim=-1)
    flow = length
    for _ in range(5):
        flow = flow @ walk
    score = flow / degree
    return score.topk(count).indices, score
