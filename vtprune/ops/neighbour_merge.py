"""Merging into each chosen token the tokens most similar to it, and all that was not chosen into one more."""

from __future__ import annotations

import torch

from vtprune.kernels import use_kernels
from vtprune.ops.checks import check_keep
from vtprune.ops.gather import take
from vtprune.ops.rounded_cosine import rounded_cosine
from vtprune.ops.topk import stable_topk


@torch.no_grad()
def nearest_others(
    keys: torch.Tensor, centres: torch.Tensor, count: int, *, bonus: torch.Tensor | None = None
) -> torch.Tensor:
    """The `count` tokens with the highest cosine to each centre, other than itself, nearest first.

    By `rounded_cosine` (by kernels, of half precision, in float32 as they come); a zero vector has cosine 0 with
    everything, and among equals the lower index comes first.

    Args:
        keys: `(batch, tokens, dim)`.
        centres: `(batch, centres)`, repeated or not.
        count: 0 to `tokens - 1`; 0 where there are no tokens.
        bonus: What is added to the cosine with each token, `(batch, tokens)`.

    Returns:
        `(batch, centres, count)` int64.

    Raises:
        ValueError: `count` is out of range.

    Example:
        >>> nearest_others(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.1]]]), torch.tensor([[0]]), 2)
        tensor([[[3, 2]]])
    """
    check_keep(count, max(keys.shape[1] - 1, 0), lowest=0)
    likeness = _cosines(take(keys, centres), keys)
    if bonus is not None:
        likeness = likeness + bonus.double().unsqueeze(1)
    return stable_topk(likeness.scatter(2, centres.unsqueeze(-1), -torch.inf), count)


def _cosines(centres: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    if use_kernels(keys) and keys.element_size() == 2:
        from vtprune.kernels.gram import cross_cosine

        return cross_cosine(centres, keys)
    return rounded_cosine(centres, keys)


def neighbour_merge(
    features: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor,
    centres: torch.Tensor,
    neighbours: int = 32,
    *,
    average: bool = False,
    bonus: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adds to each centre the weighted sum of the tokens whose keys are most similar to its own.

    LLaVA-PruMerge (arXiv 2403.15388), section 3.2. As in the paper's code the centre counts once, its neighbours by
    their weights, and nothing is divided; neighbours may be centres themselves, and one token may be merged into
    several. Sums are taken of the given features, never of merged ones.

    Args:
        features: `(batch, tokens, dim)`.
        keys: What similarity is measured on, `(batch, tokens, any)`.
        weights: `(batch, tokens)`, not negative.
        centres: `(batch, centres)`, repeated or not.
        neighbours: Tokens merged into each centre, 0 or more; all others where there are fewer.
        average: The weighted mean over centre and neighbours instead, as the paper's text has it.
        bonus: What is added to the similarity to each token, `(batch, tokens)`; Recoverable Compression's (arXiv
            2409.01179) weighted closeness to the text.

    Returns:
        `(batch, centres, dim)` in the dtype of `features`.

    Raises:
        ValueError: `neighbours` is negative.

    Example:
        >>> features, weights = torch.tensor([[[1.0], [2.0], [8.0]]]), torch.tensor([[0.2, 0.5, 0.3]])
        >>> neighbour_merge(features, features, weights, torch.tensor([[0]]), 1).flatten().tolist()
        [2.0]
    """
    if neighbours < 0:
        raise ValueError(f"neighbours must be at least 0, got {neighbours}")
    tokens = features.shape[1]
    near = nearest_others(keys, centres, min(neighbours, max(tokens - 1, 0)), bonus=bonus)
    # float64 also keeps autocast from carrying out the products in half precision.
    weights = weights.double()
    share = weights.new_zeros(*centres.shape, tokens)
    share = share.scatter(2, near, weights.gather(1, near.flatten(1)).view(near.shape))
    own = weights.gather(1, centres) if average else torch.ones_like(centres, dtype=torch.float64)
    return _sums(share.scatter(2, centres.unsqueeze(-1), own.unsqueeze(-1)), features, average)


def weighted_rest(
    features: torch.Tensor, weights: torch.Tensor, rest: torch.Tensor, *, average: bool = False
) -> torch.Tensor:
    """The weighted sum of the tokens that `rest` marks, or their weighted mean.

    Args:
        features: `(batch, tokens, dim)`.
        weights: `(batch, tokens)`, not negative.
        rest: `(batch, tokens)` booleans.
        average: Divide by the sum of the weights.

    Returns:
        `(batch, 1, dim)` in the dtype of `features`.

    Example:
        >>> features, weights = torch.tensor([[[1.0], [2.0], [8.0]]]), torch.tensor([[0.5, 0.5, 0.25]])
        >>> weighted_rest(features, weights, torch.tensor([[False, True, True]])).item()
        3.0
    """
    return _sums((weights.double() * rest).unsqueeze(1), features, average)


def _sums(share: torch.Tensor, features: torch.Tensor, average: bool) -> torch.Tensor:
    """Products of `share` `(batch, rows, tokens)` with the features, each row of `share` adding up to 1 or not."""
    if average:
        share = share / share.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return (share @ features.double()).to(features.dtype)
