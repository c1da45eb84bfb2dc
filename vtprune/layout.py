"""How the tokens of one image or video lie in its raster: host-side data that adapters fill and methods read."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
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
        patches_per_view: Patches that the encoder makes of one view, of the largest one where views differ.
        crops: Rows and columns of crops that follow view 0, a thumbnail; (0, 0) where there are none.
        shapes: Rows and columns of patches of each view, where views differ in size.
    """

    segments: tuple[Segment, ...]
    patches: tuple[int, ...]
    views: int
    patches_per_view: int
    crops: tuple[int, int] = (0, 0)
    shapes: tuple[tuple[int, int], ...] = ()

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
            ValueError: Several views whose shape cannot be told, neither one rectangle each nor square, or of several
                shapes.
        """
        if self.shapes:
            raise ValueError(f"the image has views of several shapes: {', '.join(map(str, sorted(set(self.shapes))))}")
        shapes = {(segment.height, segment.width) for segment in self.segments if segment.width}
        if len(shapes) == 1:
            height, width = shapes.pop()
            if height * width == self.patches_per_view:
                return height, width
        side = math.isqrt(self.patches_per_view)
        if side * side != self.patches_per_view:
            raise ValueError(f"several views of {self.patches_per_view} patches each, which is no square")
        return side, side

    @cached_property
    def view_shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of patches of each view."""
        return self.shapes or (self.view_shape,) * self.views

    @cached_property
    def total_patches(self) -> int:
        """Patches that the encoder makes of the image."""
        return sum(self.view_sizes)

    @cached_property
    def places(self) -> torch.Tensor:
        """View (or video frame), row and column of each token, `(tokens, 3)`; -1 for newline and separator tokens.

        Example:
            >>> grid_layout(2, 2).places.tolist()
            [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
        """
        patches = torch.tensor(self.patches)
        view = self._view_of(patches)
        widths = torch.tensor([width for _, width in self.view_shapes])[view]
        inside = patches - torch.tensor(self._starts)[view]
        found = torch.stack([view, inside // widths, inside % widths], dim=1)
        return found.masked_fill((patches < 0).unsqueeze(1), -1)

    @cached_property
    def view_tokens(self) -> tuple[torch.Tensor, ...]:
        """Token indices that belong to each encoder view, ascending, newline tokens left out."""
        patches = torch.tensor(self.patches)
        view = torch.where(patches >= 0, self._view_of(patches), -1)
        return tuple(torch.nonzero(view == index).flatten() for index in range(self.views))

    @property
    def view_sizes(self) -> list[int]:
        """Patches of each view."""
        if self.shapes:
            return [height * width for height, width in self.shapes]
        return [self.patches_per_view] * self.views

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate(self.view_sizes, initial=0))[:-1]

    def _view_of(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.bucketize(patches.clamp_min(0), torch.tensor(self._starts), right=True) - 1

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
                view = bisect_right(self._starts, patch) - 1
                inside[view].append(patch - self._starts[view])
        return tuple(_rectangle(view, found, self.view_shapes[view][1]) for view, found in enumerate(inside))

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
        return hash((self.segments, self.views, self.patches_per_view, self.shapes))


def _rectangle(view: int, patches: list[int], width: int) -> tuple[int, int]:
    """Rows and columns of the patches of one view, which lie in rows of `width`."""
    if not patches:
        return 0, 0
    (top, left), (bottom, right) = divmod(patches[0], width), divmod(patches[-1], width)
    if patches != [row * width + column for row in range(top, bottom + 1) for column in range(left, right + 1)]:
        raise ValueError(f"the {len(patches)} tokens of view {view} form no rectangle in raster order")
    return bottom + 1 - top, right + 1 - left


@lru_cache(maxsize=1024)
def join_layouts(parts: tuple[ImageLayout, ...]) -> ImageLayout:
    """The layout of an image whose views the model encodes as images of their own, in sequence order.

    Example:
        >>> join_layouts((grid_layout(2, 2), grid_layout(3, 2))).places[-1].tolist()
        [1, 2, 1]
    """
    if len(parts) == 1:
        return parts[0]
    patches: list[int] = []
    start = 0
    for part in parts:
        patches += [patch + start if patch >= 0 else -1 for patch in part.patches]
        start += part.total_patches
    shapes = tuple(shape for part in parts for shape in part.view_shapes)
    return ImageLayout(
        tuple(segment for part in parts for segment in part.segments),
        tuple(patches),
        views=len(shapes),
        patches_per_view=max(part.patches_per_view for part in parts),
        shapes=shapes if len(set(shapes)) > 1 else (),
    )


@lru_cache(maxsize=1024)
def video_layout(frames: int, height: int, width: int) -> ImageLayout:
    """The layout of a video: a view for each frame, one token a patch, frame after frame in raster order.

    Example:
        >>> video_layout(4, 3, 5).places[-1].tolist()
        [3, 2, 4]
    """
    patches = tuple(range(frames * height * width))
    return ImageLayout((Segment(height, width),) * frames, patches, views=frames, patches_per_view=height * width)


@lru_cache(maxsize=1024)
def grid_layout(height: int, width: int) -> ImageLayout:
    """The layout of a plain picture: one view, one token a patch, raster order.

    Example:
        >>> grid_layout(24, 24).tokens
        576
    """
    patches = tuple(range(height * width))
    return ImageLayout((Segment(height, width),), patches, views=1, patches_per_view=height * width)


def square_layout(tokens: int) -> ImageLayout:
    """A square of tokens, or a single row where their number is no square."""
    side = math.isqrt(tokens)
    if side * side == tokens:
        return grid_layout(side, side)
    return ImageLayout((Segment(1, tokens),), tuple(range(tokens)), views=1, patches_per_view=tokens)


def merged_layout(tokens: int, frames: int, height: int, width: int) -> ImageLayout:
    """The layout of so many tokens made of `frames x height x width` patches, merged in squares.

    Raises:
        ValueError: The patches do not make so many tokens.
    """
    for side in range(1, min(height, width) + 1):
        rows, columns = height // side, width // side
        times = tokens // (rows * columns)
        whole = rows * side == height and columns * side == width and times * rows * columns == tokens
        if whole and times and frames % times == 0:
            return video_layout(times, rows, columns)
    raise ValueError(f"{frames} x {height} x {width} patches do not make {tokens} tokens")
