"""The plain loop of picking tokens unlike pivots."""

from __future__ import annotations

import torch

from vtprune.ops.reference.seeds import cosine


def unlike_pivots(tokens: torch.Tensor, pivots: torch.Tensor, count: int, taken: set[int]) -> list[int]:
    """The picks of `(pivots, dim)` among `(tokens, dim)`, ascending; all of the pivots pick."""
    gone = set(taken)
    for place, pivot in enumerate(pivots):
        share = count // len(pivots) + (1 if place < count % len(pivots) else 0)
        left = [token for token in range(len(tokens)) if token not in gone]
        gone.update(sorted(left, key=lambda token: cosine(tokens[token], pivot))[:share])
    return sorted(gone - taken)
