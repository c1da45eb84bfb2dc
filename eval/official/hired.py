"""HiRED's selection: a quota for each crop from the first layer's attention, read back crop by crop."""

from __future__ import annotations

import torch


def hired(early: torch.Tensor, late: torch.Tensor, rate: float, alpha: float = 0.5) -> torch.Tensor:
    """Patches that stay, as a mask `(views, patches)`.

    Args:
        early: Attention of CLS in the first encoder layer, `(views, heads, patches + 1)`, thumbnail first.
        late: The same in the last but one.
        rate: Share of all patches to keep.
        alpha: Share of the budget for the thumbnail.
    """
    first, last = early.sum(dim=1)[:, 1:], late.sum(dim=1)[:, 1:]
    views, patches = last.shape
    mask = torch.zeros(views, patches, dtype=torch.bool, device=last.device)
    total = int(views * patches * rate)
    if views == 1:
        mask[0, last[0].topk(total).indices] = True
        return mask
    overview = min(int(total * alpha), patches)
    mask[0, last[0].topk(overview).indices] = True
    marked = torch.zeros(patches, device=last.device)
    marked[first[0].topk(int(patches * (1 - alpha))).indices] = 1
    # Runs of the flattened thumbnail stand for the crops, as published.
    counts = marked.view(views - 1, -1).sum(dim=1)
    whole = counts.sum().item()
    for crop in range(1, views):
        quota = min(int(counts[crop - 1].item() / whole * (total - overview)), patches)
        mask[crop, last[crop].topk(quota).indices] = True
    return mask
