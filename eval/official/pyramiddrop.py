"""PyramidDrop's selection at one stage: the last token's attention in the layer to come."""

from __future__ import annotations

import torch


def pyramiddrop(
    hidden: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    start: int,
    tokens: int,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that stay, ascending, `(count,)`, and the states of the shorter sequence.

    Args:
        hidden: States of the sequence, `(1, length, dim)`.
        queries: Of the next layer after rotary, `(1, heads, length, head_dim)`.
        keys: Likewise, of as many heads.
        scaling: Factor on the dot products.
        start: First slot of the image.
        tokens: Its tokens that are present.
        count: Tokens to keep.
    """
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    logits = queries[:, :, -1:] @ keys.transpose(2, 3) * scaling
    attention = logits.softmax(dim=-1, dtype=torch.float32).mean(dim=1)[0, 0]
    kept = attention[start : start + tokens].topk(count).indices.sort().values
    middle = hidden[:, start : start + tokens][:, kept]
    return kept, torch.cat([hidden[:, :start], middle, hidden[:, start + tokens :]], dim=1)
