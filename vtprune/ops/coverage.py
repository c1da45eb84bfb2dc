"""Facility location weighted by saliency: each pick covers what the picks before it do not."""

from __future__ import annotations

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.host import is_at_hand
from vtprune.ops.rounded_cosine import rounded_cosine_gram

# In how many parts of one the cosines are rounded.
_STEPS = 1 << 30
# Tokens whose rows are worked on at a time.
_AT_ONCE = 256
# Below the score of every token that is there, and above that of a picked one.
_ABSENT = -1.7e308


@torch.no_grad()
def weighted_coverage(
    features: torch.Tensor,
    saliency: torch.Tensor,
    keep: int,
    *,
    sharpness: float = 1.0,
    add: bool = False,
    fill_by_saliency: bool = True,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """Picks greedily the tokens that raise the coverage of all tokens most, each weighted by its saliency.

    SCOPE (arXiv 2510.24214): a token is covered by its highest cosine to any pick, at least 0; a candidate's gain is
    the coverage that it adds over all tokens, times a power of its saliency. One pass over the similarity matrix a
    pick, on the CPU over the rows of the tokens that it covers better. Cosines are rounded, so that a duplicate of a
    pick gains exactly nothing: to 2^-30, or to 2^-22 for tokens in half precision (on the CPU, for 192 or more). What
    is no number counts as 0.

    Args:
        features: `(batch, tokens, dim)`.
        saliency: `(batch, tokens)`, 0 or above.
        keep: Tokens to pick, 1 to `tokens`.
        sharpness: Power of the saliency.
        add: Add that power to the coverage instead of multiplying.
        fill_by_saliency: Once no token gains anything, go on by saliency. Otherwise the lowest index comes next, as in
            the paper's code.
        present: `(batch, tokens)` booleans; the others are picked last of all, and nothing depends on them.

    Returns:
        `(batch, keep)` int64 in the order of picking.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> weighted_coverage(features, torch.tensor([[0.2, 0.5, 0.1]]), 3).tolist()
        [[1, 2, 0]]
    """
    check_keep(keep, features.shape[1])
    saliency = saliency.double().nan_to_num(nan=0.0)
    weight = (saliency**sharpness).nan_to_num(nan=0.0)
    select = _with_kernels if use_kernels(features) else _picks
    return select(features, weight, saliency, keep, add, fill_by_saliency, present)


def _picks(
    features: torch.Tensor,
    weight: torch.Tensor,
    saliency: torch.Tensor,
    keep: int,
    add: bool,
    fill_by_saliency: bool,
    present: torch.Tensor | None,
) -> torch.Tensor:
    cosine = _cosines(features)
    lines, first = cosine.flatten(0, 1), cosine.shape[1] * torch.arange(len(cosine), device=cosine.device)
    covered = torch.zeros_like(saliency, dtype=cosine.dtype)
    limit = torch.full_like(saliency, torch.inf)
    if present is not None:
        # What is not there counts as covered.
        covered.masked_fill_(~present, 1)
        limit.masked_fill_(~present, _ABSENT)
    # Sums are exact, so that what is taken off later leaves no trace.
    gain = torch.zeros_like(saliency)
    _add_between_(gain, cosine, covered, torch.ones_like(covered), 1)
    picks = []
    for _ in range(keep):
        score = torch.minimum(gain + weight if add else gain * weight, limit)
        best, pick = score.max(dim=1, keepdim=True)
        if fill_by_saliency and not (is_at_hand(best) and (best > 0).all()):
            score = torch.where(best <= 0, torch.minimum(saliency, limit), score)
            pick = score.argmax(dim=1, keepdim=True)
        limit.scatter_(1, pick, -torch.inf)
        more = torch.maximum(covered, lines.index_select(0, pick.squeeze(1) + first))
        _add_between_(gain, cosine, covered, more, -1)
        covered = more
        picks.append(pick)
    return torch.cat(picks, dim=1)


def _add_between_(
    gain: torch.Tensor, cosine: torch.Tensor, before: torch.Tensor, after: torch.Tensor, sign: int
) -> None:
    """Adds to `gain` what each candidate covers of all tokens between two coverages of these, or takes it off."""
    if not is_at_hand(cosine):
        floor = before.unsqueeze(1)
        gain += sign * (cosine.clamp(floor, after.unsqueeze(1)) - floor).sum(dim=2, dtype=torch.float64)
        return
    # A pick covers few tokens better.
    better = (after > before).flatten().nonzero().squeeze(1)
    for tokens in better.split(_AT_ONCE):
        floor, ceiling = (covered.flatten().index_select(0, tokens).unsqueeze(1) for covered in (before, after))
        part = cosine.flatten(0, 1).index_select(0, tokens)
        torch.minimum(torch.maximum(part, floor, out=part), ceiling, out=part)
        gain.index_add_(0, tokens // before.shape[1], part.sub_(floor).double(), alpha=sign)


def _with_kernels(
    features: torch.Tensor,
    weight: torch.Tensor,
    saliency: torch.Tensor,
    keep: int,
    add: bool,
    fill_by_saliency: bool,
    present: torch.Tensor | None,
) -> torch.Tensor:
    from vtprune.kernels.coverage import pick_covering
    from vtprune.kernels.gram import COSINE_STEPS, pictures_at_once, whole_cosine_matrix

    is_half = features.element_size() == 2
    at_once = pictures_at_once(features.shape[1], 4 if is_half else 8)
    parts = []
    for first in range(0, len(features), at_once):
        part = slice(first, first + at_once)
        states = features[part]
        parts.append(
            pick_covering(
                whole_cosine_matrix(states) if is_half else (_cosines(states) * _STEPS).int(),
                COSINE_STEPS if is_half else _STEPS,
                weight[part],
                saliency[part],
                keep,
                add=add,
                fill_by_saliency=fill_by_saliency,
                present=None if present is None else present[part],
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cosines(features: torch.Tensor) -> torch.Tensor:
    return rounded_cosine_gram(features).nan_to_num_(nan=0.0)
