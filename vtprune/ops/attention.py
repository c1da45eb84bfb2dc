"""Attention probabilities of a few query rows, recomputed from states: O(rows x keys), never the whole map."""

from __future__ import annotations

import torch


def attention_rows(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention probabilities of the given query rows over all keys, in fp32.

    Args:
        queries: `(batch, heads, rows, head_dim)`.
        keys: `(batch, kv_heads, tokens, head_dim)`; grouped-query models have fewer key heads.
        scaling: Factor on the dot products.
        allowed: Booleans that broadcast to `(batch, heads, rows, tokens)`, or an additive mask of that shape.

    Returns:
        `(batch, heads, rows, tokens)`.

    Raises:
        ValueError: The number of heads is no multiple of the number of key heads.

    Example:
        >>> attention_rows(torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 5, 8), 1.0).shape
        torch.Size([1, 4, 1, 5])
    """
    batch, heads, rows, dim = queries.shape
    kv_heads = keys.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide among {kv_heads} key heads")
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads * rows, dim)
    logits = torch.matmul(grouped.float(), keys.float().transpose(-1, -2)).mul(scaling)
    logits = logits.view(batch, heads, rows, -1)
    if allowed is not None:
        if allowed.dtype == torch.bool:
            logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        else:
            logits = logits + allowed.float()
    return logits.softmax(dim=-1)


def mean_received_attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, chunk: int = 256
) -> torch.Tensor:
    """Mean over all query rows of the attention that each key receives, `(batch, heads, tokens)`, in fp32.

    Rows are taken `chunk` at a time, so that memory stays at `batch x heads x chunk x tokens`.

    Example:
        >>> mean_received_attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 1.0)[0, 0].tolist()
        [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
    """
    rows = queries.shape[2]
    total = torch.zeros(queries.shape[0], queries.shape[1], keys.shape[2], device=keys.device)
    for part in queries.split(chunk, dim=2):
        total = total + attention_rows(part, keys, scaling).sum(dim=2)
    return total / rows
