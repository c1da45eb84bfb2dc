"""TRIM's selection: a softmax over negated products with the question, and the mean of what it leaves."""

from __future__ import annotations

import numpy as np
import torch


def trim(
    features: torch.Tensor, patches: torch.Tensor, text: torch.Tensor, ratio: float = -1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches kept, ascending, `(views, kept)`, and their features with the mean of the rest behind.

    Args:
        features: Encoder features, `(views, patches, dim)`.
        patches: The same in CLIP's joint space, `(views, patches, clip_dim)`.
        text: The question there, `(1, clip_dim)`.
        ratio: Share of the patches to keep; -1 takes that of outliers, read back from the device.
    """
    score = -(patches * text.unsqueeze(1)).sum(dim=-1)
    share = score.softmax(dim=1)
    if ratio < 0:
        ratio = _outlier_ratio(share)
    count = int(share.shape[1] * ratio)
    kept = share.topk(count, dim=1).indices.sort(dim=1).values
    mask = torch.zeros(share.shape, dtype=torch.bool, device=share.device).scatter_(1, kept, True)
    views, _, dim = features.shape
    rest = features[~mask].view(views, -1, dim).mean(dim=1, keepdim=True)
    return kept, torch.cat([features[mask].view(views, count, dim), rest], dim=1)


def _outlier_ratio(share: torch.Tensor) -> float:
    values = share.float().cpu().numpy().flatten()
    low, high = np.percentile(values, 25), np.percentile(values, 75)
    return float((values > high + 1.5 * (high - low)).sum() / len(values))
