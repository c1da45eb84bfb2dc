"""Positions of tokens that are left when others go."""

from __future__ import annotations

import torch


def closed_positions(positions: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Closes the gaps that removed tokens leave in positions with several numbers a token (time, row, column).

    A number that some token of a sequence had in one of the places, and that no token which is left has in any, goes:
    all larger ones move down by one. Gaps that were there before stay. With one number a token this renumbers the
    tokens as if the removed ones had never been there.

    Args:
        positions: `(numbers, batch, length)` integers.
        left: `True` for tokens that are left, `(batch, length)`.

    Returns:
        As `positions`; those of removed tokens mean nothing.

    Example:
        >>> positions = torch.tensor([[[0, 1, 1, 1, 4]], [[0, 1, 2, 3, 4]]])
        >>> closed_positions(positions, torch.tensor([[True, True, False, True, True]]))[1, 0, 3:].tolist()
        [2, 3]
    """
    numbers, batch, length = positions.shape
    flat = positions.transpose(0, 1).reshape(batch, numbers * length)
    values, order = flat.sort(dim=1)
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    group = starts.cumsum(1) - 1
    used = torch.zeros_like(group).scatter_reduce(1, group, left.repeat(1, numbers).gather(1, order).long(), "amax")
    gone = starts & (used.gather(1, group) == 0)
    moved = values - gone.cumsum(1).to(values.dtype)
    closed = torch.empty_like(flat).scatter(1, order, moved)
    return closed.view(batch, numbers, length).transpose(0, 1)
