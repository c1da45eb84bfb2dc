"""Plain loops of bipartite soft matching, for one picture."""

from __future__ import annotations

import math

import torch

from vtprune.ops.reference.seeds import cosine


def bipartite_match(metric: torch.Tensor, merges: int, *, protected: int = 0) -> tuple[list[int], list[int]]:
    """ToMe's matching of `(tokens, dim)`: the token of each output row, and the output row of each token."""
    tokens = len(metric)
    merges = max(0, min(merges, (tokens - protected) // 2))
    if merges == 0:
        return list(range(tokens)), list(range(tokens))
    even, odd = list(range(0, tokens, 2)), list(range(1, tokens, 2))
    proposals = []
    for mover in even:
        likeness = [
            -math.inf if mover < protected or target < protected else cosine(metric[mover], metric[target])
            for target in odd
        ]
        best = max(range(len(odd)), key=lambda place: (likeness[place], -place))
        proposals.append((likeness[best], mover, odd[best]))
    proposals.sort(key=lambda proposal: (-proposal[0], proposal[1]))
    goes_to = {mover: target for _, mover, target in proposals[:merges]}
    stay = [mover for _, mover, _ in proposals[merges:]]
    kept = (sorted(stay) if protected else stay) + odd
    return kept, [kept.index(goes_to.get(token, token)) for token in range(tokens)]


def every_kth_match(metric: torch.Tensor, k: int) -> tuple[list[int], list[int]]:
    """The variant in which every `k`-th token takes in all others."""
    centres = list(range(k - 1, len(metric), k))
    source = []
    for token, state in enumerate(metric):
        likeness = [cosine(state, metric[centre]) for centre in centres]
        source.append(centres.index(token) if token in centres else likeness.index(max(likeness)))
    return centres, source


def merge_matched(
    source: list[int], states: torch.Tensor, sizes: list[float] | None = None
) -> tuple[torch.Tensor, list[float]]:
    """Means of `(tokens, dim)` weighted by `sizes`, and the new sizes."""
    sizes = [1.0] * len(states) if sizes is None else sizes
    merged, total = [], []
    for row in range(max(source) + 1):
        members = [token for token, where in enumerate(source) if where == row]
        total.append(sum(sizes[token] for token in members))
        merged.append(torch.stack([sizes[token] * states[token].double() for token in members]).sum(0) / total[-1])
    return torch.stack(merged), total
