"""Plain loop of the weighted coverage."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtprune.ops.reference.rounded_cosine import rounded_cosine


def weighted_coverage(
    features: torch.Tensor,
    saliency: Sequence[float],
    keep: int,
    *,
    sharpness: float = 1.0,
    add: bool = False,
    fill_by_saliency: bool = True,
    present: Sequence[bool] | None = None,
) -> list[int]:
    """SCOPE's picks among `(tokens, dim)`; the absent ones come last."""
    tokens = [token for token in range(len(features)) if present is None or present[token]]
    alike = [[rounded_cosine(one, other) for other in features] for one in features]
    picked: list[int] = []

    def covered(token: int) -> float:
        return max((alike[token][pick] for pick in picked), default=0.0)

    while len(picked) < min(keep, len(tokens)):
        before = {token: max(0.0, covered(token)) for token in tokens}
        scores = {}
        for candidate in set(tokens) - set(picked):
            gain = sum(max(0.0, alike[token][candidate] - before[token]) for token in tokens)
            weight = saliency[candidate] ** sharpness
            scores[candidate] = gain + weight if add else gain * weight
        if fill_by_saliency and max(scores.values()) <= 0:
            scores = {candidate: saliency[candidate] for candidate in scores}
        picked.append(max(scores, key=lambda candidate: (scores[candidate], -candidate)))
    return (picked + [token for token in range(len(features)) if token not in tokens])[:keep]
