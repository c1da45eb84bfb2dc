"""The selections of FasterVLM and of its successor VisPruner, which thins the rest round by round."""

from __future__ import annotations

import torch


def fastervlm(attention: torch.Tensor, count: int) -> torch.Tensor:
    """Patches of each view that CLS attends to most, as a mask `(views, patches)`.

    Args:
        attention: Whole map of the encoder layer, `(views, heads, patches + 1, patches + 1)`.
        count: Patches of each view to keep.
    """
    seen = attention[:, :, 0, 1:].mean(dim=1)
    mask = torch.zeros(seen.shape, dtype=torch.bool, device=seen.device)
    return mask.scatter_(1, seen.topk(count, dim=1).indices, True)


def vispruner(
    features: torch.Tensor, attention: torch.Tensor, count: int, important_ratio: float = 0.5
) -> torch.Tensor:
    """Patches of each view that are attended to or unlike the others, as a mask `(views, patches)`.

    Args:
        features: Encoder features, `(views, patches, dim)`.
        attention: Whole map of the encoder layer, `(views, heads, patches + 1, patches + 1)`.
        count: Patches of each view to keep.
        important_ratio: Share of them chosen by attention alone.
    """
    seen = attention[:, :, 0, 1:].mean(dim=1)
    important = int(count * important_ratio)
    order = seen.argsort(dim=-1, descending=True)
    rest = thinned(features, order[:, important:], count - important)
    mask = torch.zeros(seen.shape, dtype=torch.bool, device=seen.device)
    rows = torch.arange(len(seen), device=seen.device).unsqueeze(1)
    mask[rows, torch.cat([order[:, :important], rest], dim=1)] = True
    return mask


def thinned(features: torch.Tensor, residual: torch.Tensor, count: int) -> torch.Tensor:
    """What stays of `residual` `(views, any)`: each round drops up to 8 even members most like an odd one."""
    rows = torch.arange(len(residual), device=residual.device).unsqueeze(1)
    unit = features / features.norm(dim=-1, keepdim=True)
    while True:
        drop = min(8, residual.shape[1] - count)
        if drop <= 0:
            return residual
        states = unit[rows, residual]
        even, odd = states[:, ::2], states[:, 1::2]
        likeness = (even @ odd.transpose(1, 2)).max(dim=-1).values
        unlike = likeness.argsort(dim=-1, descending=True)[:, drop:]
        residual = torch.cat([residual[:, ::2][rows, unlike], residual[:, 1::2]], dim=1)
