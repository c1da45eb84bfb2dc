"""Plain loops of recovering dropped tokens."""

from __future__ import annotations

import torch

from vtprune.ops.reference.seeds import cosine, stable_topk


def recycle(
    features: torch.Tensor,
    keys: torch.Tensor,
    attention: torch.Tensor,
    bonus: torch.Tensor,
    centres: int,
    *,
    cluster: int = 32,
    summary: bool = True,
) -> tuple[list[torch.Tensor], list[int]]:
    """Centres with their neighbours, and the sum of the others, of `(tokens, dim)`; also the places they take."""
    every = range(len(features))
    states, weights = features.double(), attention.double()
    chosen = stable_topk(attention, centres)
    made = []
    for centre in chosen:
        others = [token for token in every if token != centre]
        alike = {token: cosine(keys[centre], keys[token]) + float(bonus[token].double()) for token in others}
        nearest = sorted(others, key=lambda token: (-alike[token], token))[:cluster]
        made.append(states[centre] + sum(weights[token] * states[token] for token in nearest))
    if not summary:
        return made, chosen
    left = [token for token in every if token not in chosen]
    total = torch.stack([weights[token] * states[token] for token in left]).sum(0)
    return [*made, total], [*chosen, left[-1]]
