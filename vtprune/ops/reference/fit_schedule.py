"""FitPrune's search for a schedule with sets of tokens, every alpha tried in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch


def spared(scores: torch.Tensor, alpha: float) -> set[int]:
    """The weakest of `(tokens,)` scores that together hold at most a share of alpha of their sum."""
    weakest = sorted(range(len(scores)), key=lambda token: (float(scores[token]), -token))
    held = list(accumulate(float(scores[token]) for token in weakest))
    if held[-1] == 0:
        return set(weakest) if alpha >= 1 else set()
    return {token for token, share in zip(weakest, held, strict=True) if share / held[-1] <= alpha}


def shares_at(cross: Sequence[torch.Tensor], own: Sequence[torch.Tensor], alpha: float) -> list[float]:
    """Mean share of the tokens left after each layer; a sample never loses its last token."""
    samples, tokens = cross[0].shape
    gone: list[set[int]] = [set() for _ in range(samples)]
    shares = []
    for text, visual in zip(cross, own, strict=True):
        for sample in range(samples):
            gone[sample] |= spared(text[sample], alpha) & spared(visual[sample], alpha)
        shares.append(sum(max(1, tokens - len(removed)) for removed in gone) / samples / tokens)
    return shares


def fit_schedule(
    cross: Sequence[torch.Tensor],
    own: Sequence[torch.Tensor],
    limit: float,
    cost: Callable[[Sequence[float]], float],
) -> tuple[float, list[float]] | None:
    """The lowest alpha, among all at which some token changes sides, whose shares cost at most `limit`."""
    alphas = {0.0, 1.0}
    for scores in (*cross, *own):
        for row in scores:
            held = list(accumulate(sorted(float(score) for score in row)))
            alphas |= {share / held[-1] for share in held if held[-1] > 0}
    for alpha in sorted(alphas):
        shares = shares_at(cross, own, alpha)
        if cost(shares) <= limit:
            return alpha, shares
    return None
