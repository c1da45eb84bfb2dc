"""EntropyPrune's selection: an eigenvalue problem in float64 for every token."""

from __future__ import annotations

import math

import torch


def entropies(queries: torch.Tensor) -> torch.Tensor:
    """Entropy of each token's heads, `(tokens,)` float64, from queries `(1, heads, tokens, head_dim)`."""
    states = queries[0].transpose(0, 1)
    heads = states.shape[1]
    group = states.shape[2] // 128
    if group > 1:
        states = states.unflatten(2, (128, group)).mean(dim=-1)
    states = states - states.mean(dim=1, keepdim=True)
    gram = states.double() @ states.double().transpose(1, 2) / heads
    values = torch.linalg.eigvalsh(gram).clamp(min=1e-10)
    entropy: torch.Tensor = -(values * values.log()).sum(dim=-1) / math.log(heads)
    return entropy


def entropyprune(queries: torch.Tensor, start: int, tokens: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots of the image that stay, highest entropy first, and all slots that stay, ascending.

    Args:
        queries: Of the layer before after rotary, `(1, heads, length, head_dim)`.
        start: First slot of the image.
        tokens: Tokens of the image.
        count: Tokens to keep.
    """
    picked = entropies(queries[:, :, start : start + tokens]).topk(count).indices + start
    before = torch.arange(start, device=queries.device)
    behind = torch.arange(start + tokens, queries.shape[2], device=queries.device)
    return picked, torch.cat([before, picked, behind]).sort().values
