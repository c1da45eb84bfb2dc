"""Cutting a grid into any number of cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from vtprune.ops.checks import check_keep


class Cells(NamedTuple):
    """Rectangles of a grid in raster order, each `(count,)`; `bottom` and `right` are exclusive."""

    top: torch.Tensor
    bottom: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor


def band_count(height: int, width: int, count: int) -> int:
    """Bands of rows that give `count` cells the shape nearest to squares.

    Raises:
        ValueError: `count` is not from 1 to `height * width`.

    Example:
        >>> band_count(24, 24, 64)
        8
    """
    check_keep(count, height * width)
    return min(max(round(math.sqrt(count * height / width)), -(-count // width)), height, count)


def grid_cells(height: int, width: int, count: int, device: torch.device | str = "cpu") -> Cells:
    """Cuts a `height x width` grid into exactly `count` disjoint cells that cover it.

    Rows are split into bands of (nearly) equal height, and each band into its share of cells; shares differ by at most
    one. Computed on the device from shapes alone.

    Raises:
        ValueError: `count` is not from 1 to `height * width`.

    Example:
        >>> cells = grid_cells(2, 2, 3)
        >>> [tuple(bound[i].item() for bound in cells) for i in range(3)]
        [(0, 1, 0, 2), (1, 2, 0, 1), (1, 2, 1, 2)]
    """
    bands = band_count(height, width, count)
    cell = torch.arange(count, device=device)
    # Cell c lies in the band i with i * count // bands <= c < (i + 1) * count // bands.
    band = ((cell + 1) * bands - 1) // count
    first = band * count // bands
    size = (band + 1) * count // bands - first
    place = cell - first
    return Cells(
        top=band * height // bands,
        bottom=(band + 1) * height // bands,
        left=place * width // size,
        right=(place + 1) * width // size,
    )


def spread_picks(height: int, width: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """`count` evenly spaced patches of a grid, `(count,)`, ascending: the centre of each cell of `grid_cells`.

    The centre of an even side is the patch before the middle.

    Raises:
        ValueError: `count` is not from 1 to `height * width`.

    Example:
        >>> spread_picks(4, 4, 4).tolist()
        [0, 2, 8, 10]
    """
    cells = grid_cells(height, width, count, device)
    return (cells.top + cells.bottom - 1) // 2 * width + (cells.left + cells.right - 1) // 2
