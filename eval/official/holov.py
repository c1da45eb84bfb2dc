"""HoloV's selection: a loop over chunks of consecutive patches, each with a quota read back from the device."""

from __future__ import annotations

import torch


def holov(features: torch.Tensor, attention: torch.Tensor, chunks: int, count: int) -> torch.Tensor:
    """Patches that stay, chunk by chunk, best first; -1 stands for rows of zeros, `(count,)`.

    Args:
        features: Projected features of one view, `(patches, dim)`.
        attention: CLS attention on average over heads, `(patches,)`.
        chunks: Chunks of the view.
        count: Rows of the outcome.
    """
    parts = torch.arange(len(features), device=features.device).tensor_split(chunks)
    weight = torch.stack([_chunk_score(features[part], attention[part]) for part in parts])
    weight = weight / (weight.sum() + 1e-6)
    quotas = (weight * count).floor().long()
    spare = count - int(quotas.sum().item())
    quotas[weight.topk(min(spare, chunks)).indices] += 1
    picked = []
    for part, quota in zip(parts, quotas.tolist(), strict=True):
        picked.append(part if quota >= len(part) else part[attention[part].topk(quota).indices])
    order = torch.cat(picked)[:count]
    missing = count - len(order)
    return torch.cat([order, order.new_full((missing,), -1)])


def _chunk_score(states: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    unit = states / (states.norm(dim=-1, keepdim=True) + 1e-6)
    likeness = unit @ unit.T
    likeness.fill_diagonal_(0)
    others = max(len(states) - 1, 1)
    mean = likeness.sum(dim=1, keepdim=True) / others
    variety = (likeness - mean).square().sum(dim=1) / others
    scaled = attention * 1000
    weight = 0.09 * scaled.abs().mean() / (variety.abs().mean() + 1e-6)
    score: torch.Tensor = scaled + weight * variety
    return score.mean()
