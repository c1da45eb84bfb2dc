"""The tokens beside given tokens on a grid."""

from __future__ import annotations

import torch


def grid_neighbours(tokens: torch.Tensor, height: int, width: int, *, wrap: bool = False) -> torch.Tensor:
    """The tokens left, right, above and below the given ones.

    Args:
        tokens: Indices in raster order of the grid, `(batch, any)`.
        height: Rows of the grid.
        width: Columns of the grid.
        wrap: As HiPrune's code (arXiv 2508.00553): left and right run on into the rows above and below, and what lies
            before the first or behind the last token becomes that token. By default a token at the border names itself
            instead of the neighbour it lacks.

    Returns:
        `(batch, any, 4)` int64.

    Example:
        >>> grid_neighbours(torch.tensor([[3]]), 3, 3).tolist()
        [[[3, 4, 0, 6]]]
        >>> grid_neighbours(torch.tensor([[3, 1]]), 3, 3, wrap=True).tolist()
        [[[2, 4, 0, 6], [0, 2, 0, 4]]]
    """
    around = torch.stack([tokens - 1, tokens + 1, tokens - width, tokens + width], dim=-1)
    if wrap:
        return around.clamp(0, height * width - 1)
    column = tokens % width
    exists = torch.stack(
        [column > 0, column < width - 1, tokens >= width, tokens < (height - 1) * width],
        dim=-1,
    )
    return torch.where(exists, around, tokens.unsqueeze(-1))
