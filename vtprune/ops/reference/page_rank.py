"""Plain loops of PageRank over attention, for one picture."""

from __future__ import annotations

import math

import torch


def page_rank(
    logits: torch.Tensor, start: list[float] | None = None, *, steps: int = 5, temperature: float = 0.1
) -> list[float]:
    """AIM's importance of each token from `(heads, tokens, tokens)` logits."""
    tokens = logits.shape[-1]
    ends = []
    for head in logits.tolist():
        rows = []
        for row in head:
            powers = [math.exp((value - max(row)) / temperature) for value in row]
            rows.append([power / sum(powers) for power in powers])
        where = [1 / tokens] * tokens if start is None else start
        for _ in range(steps):
            where = [sum(where[i] * rows[i][j] for i in range(tokens)) for j in range(tokens)]
        ends.append(where)
    return [math.sqrt(sum(end[token] ** 2 for end in ends) / len(ends)) for token in range(tokens)]


def attention_logits(queries: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: torch.Tensor) -> torch.Tensor:
    """Logits of `(heads, tokens, head_dim)` queries with `(kv_heads, tokens, head_dim)` keys, low where forbidden."""
    heads, tokens, _ = queries.shape
    logits = torch.empty(heads, tokens, tokens, dtype=torch.float64)
    for head in range(heads):
        shared = keys[head * keys.shape[0] // heads].double()
        for i in range(tokens):
            for j in range(tokens):
                product = float(queries[head, i].double() @ shared[j]) * scaling
                logits[head, i, j] = product if allowed[i, j] else -1e30
    return logits
