"""Picks spread evenly over windows of a picture."""

from __future__ import annotations

import torch

from vtprune.ops.checks import check_keep


def spread_over_windows(scores: torch.Tensor, windows: torch.Tensor, keep: int) -> torch.Tensor:
    """The best of every window, then the second best of every window, and so on.

    VScan (arXiv 2505.22654), its local scan, for any number of tokens: where `keep` is a multiple of the windows'
    number each gives the same number. What is left over in other cases goes to the windows with the highest next
    score, and windows that run out leave their part to the others.

    Args:
        scores: `(batch, tokens)`.
        windows: Number of the window of each token, `(tokens,)`.
        keep: Tokens to pick, 0 to `tokens`.

    Returns:
        `(batch, keep)` int64, in that order.

    Raises:
        ValueError: `keep` is out of range.

    Example:
        >>> spread_over_windows(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([0, 0, 1, 1]), 3).tolist()
        [[0, 2, 1]]
    """
    check_keep(keep, scores.shape[1], lowest=0)
    falling = scores.sort(dim=1, descending=True, stable=True).indices
    by_window = falling.gather(1, windows[falling].sort(dim=1, stable=True).indices)
    # Tokens of one window stand together now, at the same places in every picture.
    grouped = windows.sort().values
    place = torch.arange(len(windows), device=windows.device) - torch.searchsorted(grouped, grouped)
    rank = torch.empty_like(falling).scatter_(1, by_window, place.expand_as(falling))
    order = rank.gather(1, falling).sort(dim=1, stable=True).indices[:, :keep]
    return falling.gather(1, order)
