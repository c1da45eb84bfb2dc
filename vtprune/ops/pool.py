"""Average pooling of tokens on their grid."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import avg_pool2d

from vtprune.ops.gather import as_float
from vtprune.ops.spread import band_count, grid_cells, spread_picks


def block_pool(states: torch.Tensor, height: int, width: int, kernel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of `kernel x kernel` blocks, as M3 (arXiv 2405.17430) pools; incomplete border blocks are dropped.

    Args:
        states: `(batch, height * width, dim)` in raster order.
        height: Rows of the grid.
        width: Columns of the grid.
        kernel: Side of a block, 1 to the shorter side of the grid.

    Returns:
        `(batch, height // kernel * (width // kernel), dim)` in the dtype of `states`, and the centre patch of each
        block (before the middle for even kernels).

    Raises:
        ValueError: The grid does not hold the tokens, or `kernel` is out of range.

    Example:
        >>> pooled, centre = block_pool(torch.arange(16.0).view(1, 16, 1), 4, 4, 2)
        >>> pooled.flatten().tolist(), centre.tolist()
        ([2.5, 4.5, 10.5, 12.5], [0, 2, 8, 10])
    """
    _check_grid(states, height, width)
    if not 1 <= kernel <= min(height, width):
        raise ValueError(f"kernel must be from 1 to {min(height, width)} on a {height} x {width} grid, got {kernel}")
    pooled = avg_pool2d(as_float(states).mT.unflatten(2, (height, width)), kernel).flatten(2).mT
    middle = (kernel - 1) // 2
    rows = torch.arange(height // kernel, device=states.device) * kernel + middle
    columns = torch.arange(width // kernel, device=states.device) * kernel + middle
    return pooled.to(states.dtype), (rows.unsqueeze(1) * width + columns).flatten()


def scale_kernel(tokens: int, scale: int) -> int:
    """The side of M3's blocks that brings a square grid of `tokens` down to about `scale`; never fewer.

    Raises:
        ValueError: `scale` is not from 1 to `tokens`.

    Example:
        >>> [scale_kernel(576, scale) for scale in (1, 9, 36, 100, 144, 576)]
        [24, 8, 4, 2, 2, 1]
    """
    if not 1 <= scale <= tokens:
        raise ValueError(f"scale must be from 1 to {tokens} (the tokens there are), got {scale}")
    return math.isqrt(tokens // scale)


def cell_pool(states: torch.Tensor, height: int, width: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of exactly `count` cells (`vtprune.ops.spread.grid_cells`) that cover the grid, for any `count`.

    Equals `block_pool` where `count` is a square whose side divides a square grid.

    Args:
        states: `(batch, height * width, dim)` in raster order.
        height: Rows of the grid.
        width: Columns of the grid.
        count: Tokens that come out, 1 to `height * width`.

    Returns:
        `(batch, count, dim)` in the dtype of `states`, and the centre patch of each cell, `(count,)`.

    Raises:
        ValueError: The grid does not hold the tokens, or `count` is out of range.

    Example:
        >>> pooled, centre = cell_pool(torch.arange(4.0).view(1, 4, 1), 2, 2, 3)
        >>> pooled.flatten().tolist(), centre.tolist()
        ([0.5, 2.0, 3.0], [0, 2, 3])
    """
    _check_grid(states, height, width)
    cells = grid_cells(height, width, count, states.device)
    bands = band_count(height, width, count)
    rows = cells.top.unsqueeze(1) + torch.arange(-(-height // bands), device=states.device)
    columns = cells.left.unsqueeze(1) + torch.arange(-(-width // (count // bands)), device=states.device)
    # Gathered cell by cell, since adding with atomics would make the sums depend on timing.
    index = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).clamp_max(height * width - 1).flatten(1)
    inside = (rows < cells.bottom.unsqueeze(1)).unsqueeze(2) & (columns < cells.right.unsqueeze(1)).unsqueeze(1)
    inside = inside.flatten(1).unsqueeze(-1)
    members = as_float(states[:, index.flatten()]).unflatten(1, index.shape)
    pooled = members.masked_fill(~inside, 0).sum(dim=2) / inside.sum(dim=1)
    return pooled.to(states.dtype), spread_picks(height, width, count, states.device)


def _check_grid(states: torch.Tensor, height: int, width: int) -> None:
    if states.shape[1] != height * width:
        raise ValueError(f"a {height} x {width} grid has {height * width} tokens, got {states.shape[1]}")
