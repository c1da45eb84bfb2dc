"""Whole attention maps, as eager attention hands them to the methods that ask for them."""

from __future__ import annotations

import torch


def causal_mask(length: int, like: torch.Tensor) -> torch.Tensor:
    """What eager attention adds to the logits of a prompt, `(length, length)`, in the dtype of the model."""
    hidden = torch.full((length, length), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return hidden.triu(1)


def eager_map(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The attention of every query to every key, in the dtype of the model, with the softmax in float32.

    Args:
        queries: `(batch, heads, length, head_dim)`.
        keys: `(batch, kv_heads, length, head_dim)`.
        scaling: Factor on the dot products.
        mask: Added to them.

    Returns:
        `(batch, heads, length, length)`.
    """
    weights = attention_logits(queries, keys, scaling, mask)
    return weights.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)


def attention_logits(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The same before the softmax."""
    if keys.shape[1] != queries.shape[1]:
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    weights = queries @ keys.transpose(2, 3) * scaling
    return weights if mask is None else weights + mask
