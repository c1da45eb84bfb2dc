"""Greedy inference of a determinantal point process from the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtprune.ops.reference.seeds import cosine


def dpp_map(
    tokens: torch.Tensor, relevance: torch.Tensor, keep: int, present: Sequence[bool] | None = None
) -> list[int]:
    """CDPruner's picks among `(tokens, dim)`: what each adds to the determinant, computed anew each time."""
    every = range(len(tokens))
    there = [True] * len(tokens) if present is None else list(present)
    spanned = 1e-5 if tokens.dtype in (torch.bfloat16, torch.float16) else 1e-9
    weights = [float(value) for value in relevance]
    kernel = torch.tensor(
        [[weights[one] * weights[other] * cosine(tokens[one], tokens[other]) for other in every] for one in every],
        dtype=torch.float64,
    )

    def gain(token: int) -> float:
        own = float(kernel[token, token])
        cross = kernel[picked, token]
        left = own - float(cross @ torch.linalg.solve(kernel[picked][:, picked], cross)) if picked else own
        # In float32, as rounding would otherwise decide between equal tokens.
        return float(torch.tensor(left).float()) if there[token] and left > spanned * own else 0.0

    picked: list[int] = []
    while len(picked) < keep:
        gains = {token: gain(token) for token in every if token not in picked}
        best = max(gains, key=lambda token: (gains[token], -token))
        if gains[best] == 0:
            spare = sorted(gains, key=lambda token: (not there[token], -weights[token], token))
            return picked + spare[: keep - len(picked)]
        picked.append(best)
    return picked
