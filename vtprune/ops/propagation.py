"""Importance that flows along the edges of a similarity graph."""

from __future__ import annotations

import math

import torch

from vtprune.ops.gather import as_float
from vtprune.ops.rounded_cosine import rounded_cosine_gram

# What is no more rounds to 0 in float32.
_LEAST = 2.0**-150


@torch.no_grad()
def propagated_importance(
    features: torch.Tensor, *, threshold: float = 0.5, temperature: float = 0.03, steps: int = 5
) -> torch.Tensor:
    """How much importance reaches each token in a few steps of a random walk, divided by its number of edges.

    G-Prune (arXiv 2501.02268): tokens with a cosine of `threshold` or more are joined, each with itself too; the walk
    goes along an edge with a probability that is a softmax of cosines; it starts with each token's norm. The paper's
    code raises the matrix to a power, here the starting vector is sent through it `steps` times, `O(steps tokens^2)`.
    Edges whose probability is 0 in float32 do not count, as there. A zero vector has itself as its only neighbour.

    Args:
        features: `(batch, tokens, dim)`.
        threshold: Lowest cosine of an edge.
        temperature: Of the softmax.
        steps: Steps of the walk.

    Returns:
        `(batch, tokens)` float32, or float64 where `features` already is.

    Example:
        >>> propagated_importance(torch.tensor([[[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])).tolist()
        [[3.0, 0.5, 0.5]]
    """
    weight = rounded_cosine_gram(features).double()
    weight.diagonal(dim1=1, dim2=2).fill_(1)
    # In place: fresh memory for a matrix takes longer than what is computed in it. No cosine is above 1.
    torch.threshold_(weight, math.nextafter(threshold, -math.inf), -math.inf).sub_(1).div_(temperature).exp_()
    total = weight.sum(dim=-1)
    flow = features.double().norm(dim=-1)
    for _ in range(steps):
        flow = ((flow / total).unsqueeze(1) @ weight).squeeze(1)
    edges = weight.gt_(total.unsqueeze(-1) * _LEAST).sum(dim=-1)
    # The rounding of the result hides what the order of summation does to tokens that tie.
    received: torch.Tensor = flow / edges
    return received.to(as_float(features).dtype)
