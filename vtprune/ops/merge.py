"""Merging tokens: the means of groups, and merging into evenly spaced targets."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gather import as_float


def group_means(
    states: torch.Tensor, source: torch.Tensor, groups: int, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the tokens of each group, weighted or not.

    Args:
        states: `(batch, tokens, dim)`.
        source: The group of each token, `(batch, tokens)`; `groups` for tokens of none. No group is empty.
        groups: How many there are.
        weights: `(batch, tokens)`; `None` for the plain mean.

    Returns:
        The means `(batch, groups, dim)` in the dtype of `states`, and the sum of each group's weights, or its size,
        `(batch, groups)`, at least float32.

    Example:
        >>> means, sizes = group_means(torch.tensor([[[1.0], [5.0], [3.0]]]), torch.tensor([[1, 0, 1]]), 2)
        >>> means.flatten().tolist(), sizes.tolist()
        ([5.0, 2.0], [[1.0, 2.0]])
    """
    if weights is not None:
        weights = as_float(weights)
    if _goes_to_kernels(states):
        from vtprune.kernels.merging import group_sums

        return group_sums(states, source, groups, weights=weights, mean=True)
    total, sizes = _group_sums(states, source, groups, weights)
    return (total / sizes.double().unsqueeze(-1)).to(states.dtype), sizes


def _goes_to_kernels(states: torch.Tensor) -> bool:
    """Kernels know no gradients."""
    return use_kernels(states) and not (torch.is_grad_enabled() and states.requires_grad)


def _group_sums(
    states: torch.Tensor, source: torch.Tensor, groups: int, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums in float64 and sums of weights."""
    batch = states.shape[0]
    # Sums in float64 hold values of lower precision almost exactly, so that the order of atomic additions, which
    # differs from run to run on a GPU, does not show.
    wide = states.double()
    if weights is None:
        weights = torch.ones_like(source, dtype=torch.float32)
    else:
        wide = wide * weights.double().unsqueeze(-1)
    # One group more, which is left out, for the tokens of none.
    rows = (source + (groups + 1) * torch.arange(batch, device=states.device).unsqueeze(1)).flatten()
    total = wide.new_zeros(batch * (groups + 1), states.shape[-1]).index_add(0, rows, wide.flatten(0, 1))
    sizes = weights.new_zeros(batch * (groups + 1)).index_add(0, rows, weights.flatten())
    return total.unflatten(0, (batch, -1))[:, :groups], sizes.unflatten(0, (batch, -1))[:, :groups]


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
    batch, tokens, _ = features.shape
    check_keep(targets, tokens, lowest=0)
    step = max(1, tokens // max(1, targets))
    spaced = slice(0, targets * step, step)
    chosen = torch.arange(0, targets * step, step, device=features.device)
    if targets in (0, tokens):
        return features[:, spaced], chosen, chosen.new_zeros((batch, tokens - targets))
    # float64 also keeps autocast from carrying out the products in half precision.
    unit = normalize(metric.double(), dim=-1)
    nearest = (unit @ unit[:, spaced].mT).argmax(dim=2)
    runs = nearest[:, : targets * step].unflatten(1, (targets, step))
    assigned = torch.cat([runs[:, :, 1:].flatten(1), nearest[:, targets * step :]], dim=1)
    # A target is of no group: its own features are added to the mean whole.
    source = nearest.index_fill(1, chosen, targets)
    if _goes_to_kernels(features):
        from vtprune.kernels.merging import add_group_means

        return add_group_means(features, source, features[:, spaced]), chosen, assigned
    total, sizes = _group_sums(features, source, targets, None)
    mean = total / sizes.clamp_min(1).unsqueeze(-1)
    return (features[:, spaced].double() + mean).to(features.dtype), chosen, assigned
