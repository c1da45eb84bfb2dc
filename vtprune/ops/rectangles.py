"""Which part of each encoder view became tokens: host-side numbers, no tensors."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

from vtprune.layout import ImageLayout


@lru_cache(maxsize=1024)
def view_rectangles(layout: ImageLayout) -> tuple[tuple[int, int], ...]:
    """Rows and columns of patches of each view that the image has tokens for; (0, 0) for a view without tokens.

    Raises:
        ValueError: The tokens of some view form no rectangle in raster order.

    Example:
        >>> from vtprune.layout import grid_layout
        >>> view_rectangles(grid_layout(3, 7))
        ((3, 7),)
    """
    width = layout.view_shape[1]
    inside: list[list[int]] = [[] for _ in range(layout.views)]
    for patch in layout.patches:
        if patch >= 0:
            inside[patch // layout.patches_per_view].append(patch % layout.patches_per_view)
    return tuple(_rectangle(view, patches, width) for view, patches in enumerate(inside))


def _rectangle(view: int, patches: list[int], width: int) -> tuple[int, int]:
    if not patches:
        return 0, 0
    (top, left), (bottom, right) = divmod(patches[0], width), divmod(patches[-1], width)
    if patches != [row * width + column for row in range(top, bottom + 1) for column in range(left, right + 1)]:
        raise ValueError(f"the {len(patches)} tokens of view {view} form no rectangle in raster order")
    return bottom + 1 - top, right + 1 - left


@lru_cache(maxsize=1024)
def crop_ends(layout: ImageLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where each row and each column of crops ends, in patches of the picture that they make up without padding.

    Raises:
        ValueError: The views are no thumbnail with `layout.crops` behind it, or their tokens form no rectangles.

    Example:
        >>> from vtprune.layout import Segment
        >>> crop_ends(ImageLayout((Segment(2, 2), Segment(2, 4)), (0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11), 3, 4, (1, 2)))
        ((2,), (2, 4))
    """
    rows, columns = layout.crops
    if rows * columns == 0 or layout.views != 1 + rows * columns:
        raise ValueError(f"{layout.views} views are no thumbnail with {rows} x {columns} crops behind it")
    crops = view_rectangles(layout)[1:]
    heights = [max(height for height, _ in crops[row * columns : (row + 1) * columns]) for row in range(rows)]
    widths = [max(width for _, width in crops[column::columns]) for column in range(columns)]
    return tuple(accumulate(heights)), tuple(accumulate(widths))
