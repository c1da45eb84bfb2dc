"""VisionZip's selection: dominant tokens by CLS attention, the others merged into evenly spaced targets."""

from __future__ import annotations

import torch


def visionzip(
    hidden: torch.Tensor, attention: torch.Tensor, keys: torch.Tensor, dominant: int, contextual: int
) -> torch.Tensor:
    """Dominant tokens, CLS first, then contextual tokens, `(views, dominant + contextual, dim)`.

    Args:
        hidden: States of the encoder layer with CLS, `(views, patches + 1, dim)`.
        attention: Whole map of the layer, `(views, heads, patches + 1, patches + 1)`.
        keys: Keys of the layer on average over heads, `(views, patches + 1, head_dim)`.
        dominant: Dominant tokens, CLS among them.
        contextual: Contextual tokens.
    """
    views, _, dim = hidden.shape
    top = attention[:, :, 0, 1:].sum(dim=1).topk(dominant - 1, dim=1).indices + 1
    every = torch.cat([top.new_zeros(views, 1), top], dim=1)
    rest = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device).scatter_(1, every, False)
    picked = hidden.masked_select(~rest.unsqueeze(-1)).view(views, dominant, dim)
    left = hidden.shape[1] - dominant
    states = hidden.masked_select(rest.unsqueeze(-1)).view(views, left, dim)
    metric = keys[rest].view(views, left, -1)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    step = max(1, left // contextual) if contextual else 1
    targets = torch.arange(0, left, step, device=hidden.device)[:contextual]
    others = ~torch.isin(torch.arange(left, device=hidden.device), targets)
    similarity = metric[:, others] @ metric[:, targets].transpose(1, 2)
    if not contextual:
        return picked
    member = torch.zeros(similarity.shape, dtype=hidden.dtype, device=hidden.device)
    member.scatter_(2, similarity.argmax(dim=2, keepdim=True), 1)
    sizes = member.sum(dim=1).clamp(min=1).unsqueeze(-1)
    merged = member.transpose(1, 2) @ states[:, others] / sizes
    return torch.cat([picked, states[:, targets] + merged], dim=1)
