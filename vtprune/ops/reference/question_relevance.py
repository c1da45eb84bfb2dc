"""How much tokens bear on a question, one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtprune.ops.reference.rounded_cosine import rounded_cosine


def question_relevance(
    tokens: torch.Tensor, pieces: torch.Tensor, mask: Sequence[bool], among: Sequence[bool], negate: bool
) -> list[float]:
    """Mean cosines of `(tokens, dim)` to the pieces that are there, from 0 to 1 among some tokens."""
    words = [piece for piece, there in zip(pieces, mask, strict=True) if there]
    sign = -1 if negate else 1
    scores = [sign * sum(rounded_cosine(token, word) for word in words) / max(1, len(words)) for token in tokens]
    counted = [score for score, counts in zip(scores, among, strict=True) if counts]
    if not counted or min(counted) == max(counted):
        return [1.0] * len(scores)
    low, high = min(counted), max(counted)
    return [(score - low + 1e-6) / (high - low) for score in scores]
