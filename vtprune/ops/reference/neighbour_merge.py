"""Plain loops of merging by nearest keys, for one picture."""

from __future__ import annotations

import torch

from vtprune.ops.reference.rounded_cosine import rounded_cosine


def nearest_others(keys: torch.Tensor, centre: int, count: int, *, bonus: torch.Tensor | None = None) -> list[int]:
    """The `count` tokens of `(tokens, dim)` most similar to one of them."""
    others = [token for token in range(len(keys)) if token != centre]
    likeness = {token: rounded_cosine(keys[centre], keys[token]) for token in others}
    if bonus is not None:
        likeness = {token: value + float(bonus[token]) for token, value in likeness.items()}
    return sorted(others, key=lambda token: (-likeness[token], token))[:count]


def neighbour_merge(
    features: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor,
    centres: list[int],
    neighbours: int = 32,
    *,
    average: bool = False,
    bonus: torch.Tensor | None = None,
) -> torch.Tensor:
    """LLaVA-PruMerge's merged tokens of `(tokens, dim)`."""
    merged = []
    for centre in centres:
        near = nearest_others(keys, centre, neighbours, bonus=bonus)
        own = float(weights[centre]) if average else 1.0
        parts = [own * features[centre].double()]
        parts += [float(weights[token]) * features[token].double() for token in near]
        mass = own + sum(float(weights[token]) for token in near)
        total = torch.stack(parts).sum(0)
        merged.append(total / mass if average and mass > 0 else total)
    return torch.stack(merged)


def weighted_rest(
    features: torch.Tensor, weights: torch.Tensor, rest: list[int], *, average: bool = False
) -> torch.Tensor:
    """The one token of `(tokens, dim)` into which the tokens `rest` go."""
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for token in rest:
        total = total + float(weights[token]) * features[token].double()
    mass = sum(float(weights[token]) for token in rest)
    return total / mass if average and mass > 0 else total
