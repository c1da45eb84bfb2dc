"""SCOPE's selection: a greedy pick after another by saliency times what it adds to the coverage."""

from __future__ import annotations

import torch


def scope(features: torch.Tensor, attention: torch.Tensor, count: int) -> torch.Tensor:
    """Patches of each view in the order of picking, `(views, count)`.

    Args:
        features: Encoder features, `(views, patches, dim)`.
        attention: Whole map of the encoder layer, `(views, heads, patches + 1, patches + 1)`.
        count: Patches of each view to pick.
    """
    saliency = attention[:, :, 0, 1:].sum(dim=1)
    unit = features / features.norm(dim=-1, keepdim=True)
    cosine = unit @ unit.transpose(1, 2)
    views, patches = saliency.shape
    every = torch.arange(views, device=features.device)
    covered = torch.zeros(views, patches, dtype=cosine.dtype, device=features.device)
    chosen = torch.zeros(views, patches, dtype=torch.bool, device=features.device)
    picked = []
    for _ in range(count):
        added = (cosine - covered.unsqueeze(2)).clamp(min=0).sum(dim=1)
        best = (added * saliency).masked_fill(chosen, -float("inf")).argmax(dim=-1)
        chosen[every, best] = True
        covered = torch.maximum(covered, cosine[every, :, best])
        picked.append(best)
    return torch.stack(picked, dim=1)
