"""Plain loop of the propagated importance."""

from __future__ import annotations

import math

import torch

from vtprune.ops.reference.rounded_cosine import rounded_cosine


def propagated_importance(
    features: torch.Tensor, *, threshold: float = 0.5, temperature: float = 0.03, steps: int = 5
) -> list[float]:
    """G-Prune's score of each of `(tokens, dim)`."""
    tokens = range(len(features))
    walk = []
    for one in tokens:
        cosines = {other: rounded_cosine(features[one], features[other]) for other in tokens} | {one: 1.0}
        powers = {
            other: math.exp((cosine - 1) / temperature) for other, cosine in cosines.items() if cosine >= threshold
        }
        walk.append({other: power / sum(powers.values()) for other, power in powers.items()})
    flow = [float(token.double().norm()) for token in features]
    for _ in range(steps):
        flow = [sum(flow[one] * walk[one].get(other, 0.0) for one in tokens) for other in tokens]
    edges = [sum(float(torch.tensor(chance)) > 0 for chance in walk[token].values()) for token in tokens]
    return [arrived / count for arrived, count in zip(flow, edges, strict=True)]
