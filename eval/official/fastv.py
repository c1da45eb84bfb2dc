"""FastV's selection: the last token's row of a whole attention map."""

from __future__ import annotations

import torch


def fastv(
    hidden: torch.Tensor, attention: torch.Tensor, start: int, tokens: int, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens that stay, best first; the slots of the sequence that stay; and its states.

    Args:
        hidden: States that enter the layer, `(1, length, dim)`.
        attention: Whole map of the layer before, `(1, heads, length, length)`.
        start: First slot of the image.
        tokens: Tokens of the image.
        count: Tokens to keep.
    """
    seen = attention.mean(dim=1)[0, -1, start : start + tokens]
    order = seen.topk(count).indices
    before = torch.arange(start, device=hidden.device)
    behind = torch.arange(start + tokens, hidden.shape[1], device=hidden.device)
    slots = torch.cat([before, order + start, behind]).sort().values
    return order, slots, hidden[:, slots]
