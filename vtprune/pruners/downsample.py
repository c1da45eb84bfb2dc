"""The picture at a lower resolution, a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch

from vtprune.context import Context
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner, Reduction, Signal
from vtprune.registry import register


@cache
def small_grid(view_shape: tuple[int, int], keep: int) -> tuple[int, int]:
    """The largest grid of at most `keep` patches whose aspect is from 3:4 to 4:3 of that of a `(rows, columns)` grid.

    Among equally large ones the nearest in aspect, then the one with fewer rows. Where so few patches allow no such
    aspect, the nearest aspect that they do allow.

    Example:
        >>> small_grid((24, 24), 64), small_grid((24, 24), 63), small_grid((24, 24), 13), small_grid((3, 7), 1)
        ((8, 8), (7, 9), (3, 4), (1, 1))
    """
    rows, columns = view_shape
    # (patches, stretch, rows, columns) of the widest grid within the aspect for each number of rows
    fitting = []
    for height in range(1, keep + 1):
        width = min(keep // height, 4 * height * columns // (3 * rows))
        if width and 4 * width * rows >= 3 * height * columns:
            fitting.append((-height * width, _stretch(view_shape, height, width), height, width))
    if fitting:
        return min(fitting)[2:]
    every = [(height, width) for height in range(1, keep + 1) for width in range(1, keep // height + 1)]
    return min(every, key=lambda grid: _stretch(view_shape, *grid))


def _stretch(view_shape: tuple[int, int], height: int, width: int) -> Fraction:
    """By what factor one side is too long for the aspect of the view, 1 or above."""
    stretch = Fraction(height * view_shape[1], width * view_shape[0])
    return max(stretch, 1 / stretch)


@register
@dataclass(frozen=True)
class Downsample(Pruner):
    """Encodes the picture again, so small that its patches are the budget.

    What every method should beat: the same number of tokens from a smaller picture (VTC-Bench, arXiv 2510.07143). Of
    several views the thumbnail is encoded, the crops go. Not every number is the product of two sides of the picture's
    aspect, so that the budget is rounded down (`small_grid`).

    The new tokens take the places of patches evenly spaced over the first view; beyond its number, of tokens evenly
    spaced over the other views, and of newline tokens last.

    Example:
        >>> from vtprune.layout import grid_layout
        >>> Downsample().attainable(grid_layout(24, 24), 65)
        64
    """

    name = "downsample"
    paper = "Baseline, without a paper"
    year = 2024
    summary = "Encodes a smaller picture instead."
    whole_images = True
    signals = frozenset({Signal.PIXELS})
    merges = True

    def attainable(self, layout: ImageLayout, keep: int) -> int:
        """The patches of the largest small picture not above `keep`, or all tokens if there are no more.

        Raises:
            ValueError: Several views that are not square.
        """
        if keep >= layout.tokens:
            return layout.tokens
        height, width = small_grid(layout.view_shape, keep)
        return height * width

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Encodes the small picture.

        Raises:
            ValueError: No small picture has `keep` patches.
        """
        height, width = small_grid(context.layout.view_shape, keep)
        if height * width != keep:
            raise ValueError(
                f"{self.name} cannot keep {keep} tokens of a {context.layout.view_shape} grid; the next smaller "
                f"picture has {height * width} patches"
            )
        features = context.encode_smaller(height, width).to(context.hidden.dtype)
        return Reduction(_places(context, height, width).expand(context.batch, -1), features=features)


def _places(context: Context, height: int, width: int) -> torch.Tensor:
    """Tokens whose places the small picture's patches take, `(height * width,)`, ascending."""
    keep, (rows, columns), view = height * width, context.layout.view_shape, context.view_tokens[0]
    if height <= rows and width <= columns and len(view) == rows * columns:
        row, column = _spread(rows, height, view.device), _spread(columns, width, view.device)
        return view[(row.unsqueeze(1) * columns + column).flatten()]
    if keep <= len(view):
        return view[_spread(len(view), keep, view.device)]
    # 0 for the first view, 1 for other patches, 2 for newline tokens.
    rank = torch.where(context.is_patch[0], 1, 2).scatter(0, view, 0)
    order = rank.sort(stable=True).indices
    patches = sum(patch >= 0 for patch in context.layout.patches)
    others, separators = order[len(view) : patches], order[patches:]
    extra = min(keep - len(view), len(others))
    beyond = keep - len(view) - extra
    return torch.cat([view, others[_spread(len(others), extra, view.device)], separators[:beyond]]).sort().values


def _spread(among: int, count: int, device: torch.device) -> torch.Tensor:
    """`count` of `among` places, evenly spaced: the middle of each of `count` equal pieces."""
    return (2 * torch.arange(count, device=device) + 1) * among // (2 * max(1, count))
