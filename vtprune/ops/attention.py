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


def received_attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: torch.Tensor | None = None, chunk: int = 256
) -> torch.Tensor:
    """Sum over all query rows of the attention that each key receives, `(batch, heads, tokens)`, in fp32.

    Rows are taken `chunk` at a time, so that memory stays at `batch x heads x chunk x tokens`.

    Args:
        queries: `(batch, heads, rows, head_dim)`.
        keys: `(batch, kv_heads, tokens, head_dim)`.
        scaling: Factor on the dot products.
        allowed: A mask as for `attention_rows`. A row counts only where it may attend to itself: others are padding.
        chunk: Rows at a time.

    Example:
        >>> received_attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 1.0)[0, 0].sum().item()
        3.0
    """
    total = torch.zeros(queries.shape[0], queries.shape[1], keys.shape[2], device=keys.device)
    present = None if allowed is None else _own(allowed, queries.shape[2])
    for start in range(0, queries.shape[2], chunk):
        here = slice(start, start + chunk)
        mask = allowed if allowed is None or allowed.shape[2] == 1 else allowed[:, :, here]
        rows = attention_rows(queries[:, :, here], keys, scaling, mask)
        total = total + (rows if present is None else rows * present[:, :, here, None]).sum(dim=2)
    return total


def mean_received_attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, chunk: int = 256
) -> torch.Tensor:
    """Mean over all query rows of the attention that each key receives, `(batch, heads, tokens)`, in fp32.

    Example:
        >>> mean_received_attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 1.0)[0, 0].tolist()
        [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
    """
    return received_attention(queries, keys, scaling, chunk=chunk) / queries.shape[2]


def _own(allowed: torch.Tensor, rows: int) -> torch.Tensor:
    """Whether each row may attend to itself, `(batch, heads or 1, rows)`."""
    own = allowed[:, :, 0, :rows] if allowed.shape[2] == 1 else allowed.diagonal(dim1=2, dim2=3)
    return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
