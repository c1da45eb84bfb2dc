"""How the tokens of one image lie in its raster: pure host-side data that adapters fill and methods read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Segment:
    """A rectangular run of tokens: `height` rows of `width` patches, each row closed by a newline token or not.

    A single separator token is `Segment(1, 0, newline=True)`.
    """

    height: int
    width: int
    newline: bool = False

    @property
    def tokens(self) -> int:
        """Tokens in the sequence, newline tokens included."""
        return self.height * (self.width + int(self.newline))


@dataclass(frozen=True)
class ImageLayout:
    """The tokens of one image in sequence order.

    Args:
        segments: Rectangles of tokens, one after another.
        patches: For each token its index in the encoder's patches of this image, counted through all views
            (`view * patches_per_view + patch`); -1 for newline and separator tokens.
        views: Encoder views (thumbnail and crops) of this image.
        patches_per_view: Patches that the encoder makes of one view.
        crops: Rows and columns of crops that follow view 0, a thumbnail; (0, 0) where there are none.
    """

    segments: tuple[Segment, ...]
    patches: tuple[int, ...]
    views: int
    patches_per_view: int
    crops: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if len(self.patches) != self.tokens:
            raise ValueError(f"layout has {self.tokens} tokens in its segments but {len(self.patches)} patch indices")

    @cached_property
    def tokens(self) -> int:
        """Visual tokens of the image before any pruning."""
        return sum(segment.tokens for segment in self.segments)

    @cached_property
    def grids(self) -> tuple[torch.Tensor, ...]:
        """Token indices of each segment that has patches, `(height, width)`, newline tokens left out."""
        found, start = [], 0
        for segment in self.segments:
            if segment.width:
                rows = torch.arange(segment.tokens).view(segment.height, -1) + start
                found.append(rows[:, : segment.width].contiguous())
            start += segment.tokens
        return tuple(found)

    @cached_property
    def view_shape(self) -> tuple[int, int]:
        """Rows and columns of patches that the encoder makes of one view; patches of a view count in raster order.

        Raises:
            ValueError: Several views that are not square.
        """
        if self.views == 1 and len(self.segments) == 1 and self.segments[0].height * self.segments[0].width:
            return self.segments[0].height, self.segments[0].width
        side = math.isqrt(self.patches_per_view)
        if side * side != self.patches_per_view:
            raise ValueError(f"several views of {self.patches_per_view} patches each, which is no square")
        return side, side

    @cached_property
    def view_tokens(self) -> tuple[torch.Tensor, ...]:
        """Token indices that belong to each encoder view, ascending, newline tokens left out."""
        patches = torch.tensor(self.patches)
        view = torch.where(patches >= 0, patches // self.patches_per_view, -1)
        return tuple(torch.nonzero(view == index).flatten() for index in range(self.views))

    @cached_property
    def view_rectangles(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of patches of each view that the image has tokens for; (0, 0) for a view without tokens.

        Raises:
            ValueError: The tokens of some view form no rectangle in raster order.

        Example:
            >>> grid_layout(3, 7).view_rectangles
            ((3, 7),)
        """
        inside: list[list[int]] = [[] for _ in range(self.views)]
        for patch in self.patches:
            if patch >= 0:
                inside[patch // self.patches_per_view].append(patch % self.patches_per_view)
        return tuple(_rectangle(view, patches, self.view_shape[1]) for view, patches in enumerate(inside))

    @cached_property
    def crop_ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where each row and each column of crops ends, in patches of the picture that they make up without padding.

        Raises:
            ValueError: The views are no thumbnail with `crops` behind it, or their tokens form no rectangles.

        Example:
            >>> patches = (0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11)
            >>> ImageLayout((Segment(2, 2), Segment(2, 4)), patches, 3, 4, crops=(1, 2)).crop_ends
            ((2,), (2, 4))
        """
        rows, columns = self.crops
        if rows * columns == 0 or self.views != 1 + rows * columns:
            raise ValueError(f"{self.views} views are no thumbnail with {rows} x {columns} crops behind it")
        crops = self.view_rectangles[1:]
        heights = [max(height for height, _ in crops[row * columns : (row + 1) * columns]) for row in range(rows)]
        widths = [max(width for _, width in crops[column::columns]) for column in range(columns)]
        return tuple(accumulate(heights)), tuple(accumulate(widths))

    @cached_property
    def has_separators(self) -> bool:
        """Whether some tokens (newlines) stand for no patch."""
        return any(patch < 0 for patch in self.patches)

    def __hash__(self) -> int:
        return hash((self.segments, self.views, self.patches_per_view))


def _rectangle(view: int, patches: list[int], width: int) -> tuple[int, int]:
    """Rows and columns of the patches of one view, which lie in rows of `width`."""
    if not patches:
        return 0, 0
    (top, left), (bottom, right) = divmod(patches[0], width), divmod(patches[-1], width)
    if patches != [row * width + column for row in range(top, bottom + 1) for column in range(left, right + 1)]:
        raise ValueError(f"the {len(patches)} tokens of view {view} form no rectangle in raster order")
    return bottom + 1 - top, right + 1 - left


def grid_layout(height: int, width: int) -> ImageLayout:
    """The layout of a plain picture: one view, one token a patch, raster order.

    Example:
        >>> grid_layout(24, 24).tokens
        576
    """
    patches = tuple(range(height * width))
    return ImageLayout((Segment(height, width),), patches, views=1, patches_per_view=height * width)
