"""Top-k with a tie rule, which `torch.topk` does not promise."""

from __future__ import annotations

import torch

from vtprune.ops.checks import check_keep


def stable_topk(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """Indices of the `keep` highest scores, best first; among equal scores the lower index comes first.

    Args:
        scores: `(batch, tokens)`.
        keep: Indices to return, 0 to `tokens`.

    Returns:
        `(batch, keep)` int64.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> stable_topk(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3).tolist()
        [[1, 2, 3]]
    """
    check_keep(keep, scores.shape[-1], lowest=0)
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :keep]
