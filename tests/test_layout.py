"""Where the views of an image lie in it."""

from __future__ import annotations

import pytest
from fakes import ANYRES

from vtprune.layout import ImageLayout, Segment, grid_layout


def test_rectangles_and_ends() -> None:
    assert ANYRES.view_rectangles == ((4, 4), (3, 4), (3, 4), (3, 4), (3, 4))
    assert ANYRES.crop_ends == ((3, 6), (4, 8))
    assert grid_layout(3, 7).view_rectangles == ((3, 7),)
    # Of the upper crops only the last row, of the right ones only the first column.
    patches = (*range(4), 6, 7, 10, 12, 13, 16, 14, 15, 18)
    uneven = ImageLayout((Segment(2, 2), Segment(3, 3)), patches, 5, 4, crops=(2, 2))
    assert uneven.view_rectangles == ((2, 2), (1, 2), (1, 1), (2, 2), (2, 1))
    assert uneven.crop_ends == ((1, 3), (2, 3))
    empty = ImageLayout((Segment(2, 2), Segment(1, 2)), (0, 1, 2, 3, 4, 5), 3, 4, crops=(1, 2))
    assert empty.view_rectangles == ((2, 2), (1, 2), (0, 0))
    assert empty.crop_ends == ((1,), (2, 2))


def test_rectangles_are_of_patches_in_raster_order() -> None:
    layout = ImageLayout((Segment(1, 3),), (0, 1, 3), 2, 4)
    with pytest.raises(ValueError, match="the 3 tokens of view 0 form no rectangle"):
        layout.view_rectangles  # noqa: B018


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (grid_layout(2, 2), "1 views are no thumbnail with 0 x 0 crops"),
        (ImageLayout((Segment(2, 4),), tuple(range(8)), 2, 4, (2, 1)), "2 views are no thumbnail with 2 x 1"),
    ],
)
def test_only_crops_behind_a_thumbnail_have_ends(layout: ImageLayout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout.crop_ends  # noqa: B018
