from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vtprune.demo.overlay import PANEL, cell_size, overlay
from vtprune.layout import ImageLayout, Segment, grid_layout


def centres(sheet: Image.Image, rows: int, columns: int, cell: int, left: int = 0) -> np.ndarray:
    """Brightness in the middle of each cell, (rows, columns)."""
    values = np.asarray(sheet.convert("L"))
    ys = (np.arange(rows) * cell) + cell // 2
    xs = left + (np.arange(columns) * cell) + cell // 2
    return values[np.ix_(ys, xs)]


def anyres() -> ImageLayout:
    """A thumbnail of 4 x 4 patches and a canvas of 4 x 8 with a newline behind each row."""
    patches = [*range(16)]
    for row in range(4):
        patches += [16 + (column // 4) * 16 + row * 4 + column % 4 for column in range(8)] + [-1]
    return ImageLayout((Segment(4, 4), Segment(4, 8, newline=True)), tuple(patches), views=3, patches_per_view=16)


@pytest.mark.parametrize(("rows", "columns", "size"), [(24, 24, (192, 192)), (3, 5, (50, 30)), (24, 24, (640, 480))])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_exactly_the_kept_cells_are_bright(rows: int, columns: int, size: tuple[int, int], share: float) -> None:
    keep = np.random.default_rng(0).random((rows, columns)) < share
    sheet = overlay(Image.new("RGB", size, "white"), grid_layout(rows, columns), np.flatnonzero(keep).tolist())
    bright = centres(sheet, rows, columns, cell_size(rows, columns))
    assert (bright[keep] == 255).all()
    assert (bright[~keep] < 128).all()


def test_kept_cells_show_the_picture_untouched() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    sheet = overlay(picture, grid_layout(4, 4), [5], panel=96)
    cell = 24
    inside = (slice(cell + 1, 2 * cell - 1), slice(cell + 1, 2 * cell - 1))
    assert np.array_equal(np.asarray(sheet)[inside], np.asarray(picture)[inside])
    outside = np.asarray(sheet)[:cell, :cell].astype(int)
    assert outside.max() < np.asarray(picture)[:cell, :cell].max() / 2


def test_line_around_kept_cells_only() -> None:
    sheet = np.asarray(overlay(Image.new("RGB", (40, 40), "white"), grid_layout(2, 2), [3], panel=40))[:40, :40]
    yellow = (sheet == (255, 236, 60)).all(axis=-1)
    edge = np.zeros((40, 40), dtype=bool)
    edge[20:, 20:] = True
    edge[21:39, 21:39] = False
    assert np.array_equal(yellow, edge)


def test_small_picture_is_enlarged() -> None:
    sheet = overlay(Image.new("RGB", (192, 192)), grid_layout(24, 24), [0])
    assert sheet.width >= PANEL
    assert sheet.width % 24 == 0


def test_anyres_panels() -> None:
    layout = anyres()
    thumbnail, canvas = {0, 15}, {16, 16 + 9 + 7}
    newline = 16 + 8
    sheet = overlay(Image.new("RGB", (80, 40), "white"), layout, [*thumbnail, *canvas, newline], panel=160)
    left = centres(sheet, 4, 4, 40)
    assert {(int(y), int(x)) for y, x in np.argwhere(left == 255)} == {(0, 0), (3, 3)}
    right = centres(sheet, 4, 8, 20, left=160 + 16)
    assert {(int(y), int(x)) for y, x in np.argwhere(right == 255)} == {(0, 0), (1, 7)}


def test_legend_is_drawn_below_and_fits() -> None:
    layout = grid_layout(24, 24)
    plain = overlay(Image.new("RGB", (10, 10)), layout, [1, 2])
    named = overlay(Image.new("RGB", (10, 10)), layout, [1, 2], legend="divprune, " + "64 tokens per image, " * 8)
    assert named.height > plain.height > PANEL
    ink = np.asarray(named.convert("L"))[PANEL:]
    assert (ink < 100).any()
    assert (ink[:, -12:] == 255).all()


@pytest.mark.parametrize("token", [-1, 36])
def test_foreign_token(token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} is outside"):
        overlay(Image.new("RGB", (10, 10)), grid_layout(6, 6), [0, token])
