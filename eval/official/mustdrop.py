"""MustDrop's filter inside the decoder: two thresholds on the attention of all words."""

from __future__ import annotations

import torch


def mustdrop(
    attention: torch.Tensor, overall: float, individual: float, protected: torch.Tensor | None = None
) -> torch.Tensor:
    """Tokens that stay, ascending.

    Args:
        attention: From the words behind the image to its tokens, `(heads, words, tokens)`.
        overall: Share of the whole attention below which a token may go.
        individual: Attention of every single word below which it may go.
        protected: Tokens that stay in any case.
    """
    mean = attention.mean(dim=0)
    received = mean.sum(dim=0)
    gone = (received < overall * received.sum()) & (mean.max(dim=0).values < individual)
    kept = (~gone).nonzero().squeeze(1)
    if protected is not None:
        kept = torch.cat([kept, protected]).unique()
    return kept


def mustdrop_keys(attention: torch.Tensor, share: float = 0.08) -> torch.Tensor:
    """The patches that CLS attends to most in the last encoder layer; `attention` is its whole map of one view."""
    seen = attention[:, 0, 1:].mean(dim=0)
    return seen.topk(-int(-share * len(seen) // 1)).indices
