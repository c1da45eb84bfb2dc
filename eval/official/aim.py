"""AIM's two stages: matching with plain means, and PageRank over sharpened attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtprune.eval.official.tome import match


def aim_merge(states: torch.Tensor, rounds: Sequence[int]) -> torch.Tensor:
    """States `(frames, tokens, dim)` after rounds that merge so many pairs each, `(frames, left, dim)`."""
    for merges in rounds:
        states = match(states, merges).merge(states, "mean")
    return states


def aim_rank(logits: torch.Tensor) -> torch.Tensor:
    """Importance of each token, `(1, length)`, from attention logits `(1, heads, length, length)`."""
    walk = (logits / 0.1).softmax(dim=-1, dtype=torch.float32)
    weight = torch.full(walk.shape[:2] + walk.shape[3:], 1 / walk.shape[3], device=walk.device).unsqueeze(2)
    for _ in range(5):
        weight = weight @ walk
    return weight.squeeze(2).square().mean(dim=1).sqrt()


def aim_drop(logits: torch.Tensor, start: int, tokens: int, count: int) -> torch.Tensor:
    """Tokens of the span of `tokens` from `start` on that stay, best first, `(count,)`."""
    return aim_rank(logits)[0, start : start + tokens].topk(count).indices
