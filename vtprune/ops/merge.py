"""Merging tokens into evenly spaced targets."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.ops.checks import check_keep


def merge_into_targets(
    features: torch.Tensor, metric: torch.Tensor, targets: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Adds to each of `targets` evenly spaced tokens the mean of the tokens most similar to it.

    VisionZip (arXiv 2412.04467), the contextual tokens: every `tokens // targets`-th token is a target; each other
    token goes to the target with the highest cosine of `metric`. As in the paper's code the mean is *added* to the
    target (the text speaks of averaging), and a target without members stays as it is.

    Args:
        features: `(batch, tokens, dim)`.
        metric: What similarity is measured on, `(batch, tokens, any)`.
        targets: Tokens that come out, 0 to `tokens`.

    Returns:
        Merged features `(batch, targets, dim)` in the dtype of `features`, the targets' positions `(targets,)`, and
        for each of the other tokens in order which target it went to, `(batch, tokens - targets)`.

    Raises:
        ValueError: `targets` is out of range.

    Example:
        >>> merged, *_ = merge_into_targets(torch.tensor([[[1.0], [3.0], [5.0]]]), torch.ones(1, 3, 1), 1)
        >>> merged.flatten().tolist()
        [5.0]
    """
    tokens = features.shape[1]
    check_keep(targets, tokens, lowest=0)
    every = torch.arange(tokens, device=features.device)
    step = max(1, tokens // max(1, targets))
    chosen = every[: targets * step : step]
    if targets in (0, tokens):
        return features[:, chosen], chosen, every.new_zeros((features.shape[0], tokens - targets))
    is_target = (every % step == 0) & (every < targets * step)
    others = is_target.to(torch.uint8).argsort(stable=True)[: tokens - targets]
    # float64 also keeps autocast from carrying out the products in half precision.
    unit = normalize(metric.double(), dim=-1)
    assigned = (unit[:, others] @ unit[:, chosen].mT).argmax(dim=2)
    member = (assigned.unsqueeze(-1) == every[:targets]).double()
    mean = member.mT @ features[:, others].double() / member.sum(dim=1).clamp_min(1).unsqueeze(-1)
    return (features[:, chosen].double() + mean).to(features.dtype), chosen, assigned
