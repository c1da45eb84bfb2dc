"""Plain loop of averaging dropped tokens into kept ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtprune.ops.reference.rounded_cosine import rounded_cosine


def absorb(features: torch.Tensor, kept: Sequence[int], dropped: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """The means of `(tokens, dim)`, `(kept, dim)` float64, and where each dropped token went."""
    groups = [[token] for token in kept]
    assigned = []
    for token in dropped:
        likeness = [rounded_cosine(features[token], features[target]) for target in kept]
        assigned.append(likeness.index(max(likeness)))
        groups[assigned[-1]].append(token)
    return torch.stack([features[group].double().mean(0) for group in groups]), assigned
