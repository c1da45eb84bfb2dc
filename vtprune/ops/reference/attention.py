"""Plain loops of attention rows over one picture."""

from __future__ import annotations

import math

import torch


def attention_row(query: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: list[bool]) -> list[float]:
    """Attention of one query `(head_dim,)` over `(tokens, head_dim)` keys; nothing goes to keys not allowed."""
    logits = [scaling * float(query.double() @ key.double()) for key in keys]
    highest = max(logit for logit, open_ in zip(logits, allowed, strict=True) if open_)
    weights = [math.exp(logit - highest) if open_ else 0.0 for logit, open_ in zip(logits, allowed, strict=True)]
    return [weight / sum(weights) for weight in weights]


def mean_received_attention(queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> list[float]:
    """Mean over all `(rows, head_dim)` queries of what each key receives."""
    rows = [attention_row(query, keys, scaling, [True] * len(keys)) for query in queries]
    return [sum(row[token] for row in rows) / len(rows) for token in range(len(keys))]
