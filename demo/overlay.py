"""Draws which visual tokens survive on the picture they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from vtprune.layout import ImageLayout

PANEL = 768
"""Pixels that the longer side of a panel has at least."""

_GAP = 16
_MARGIN = 12
_TEXT = 22
_OUTLINE = (255, 236, 60)
_PAPER = (255, 255, 255)
_INK = (30, 30, 30)


def overlay(
    image: Image.Image | Sequence[Image.Image],
    layout: ImageLayout,
    kept: Iterable[int],
    *,
    legend: str = "",
    panel: int = PANEL,
) -> Image.Image:
    """The picture with dropped cells dark and grey, kept ones untouched inside a thin line.

    One panel for each grid of tokens: one for a plain model; thumbnail and canvas side by side for anyres models,
    whose tokens cover the same picture twice.

    Args:
        image: The picture that the tokens cover, of any size; of a video its frames.
        layout: Where the tokens lie.
        kept: Surviving tokens, as in `StageReport.images`.
        legend: A line to stand below; how many tokens are kept is added.
        panel: Pixels that the longer side of a panel has at least.

    Returns:
        An RGB picture whose cells are whole numbers of pixels.

    Raises:
        ValueError: A token that the layout does not have.
    """
    alive = _mask(layout, kept)
    pictures = spread(image, len(layout.grids))
    panels = [_panel(picture, alive[grid], panel) for picture, grid in zip(pictures, layout.grids, strict=True)]
    height = max((part.height for part in panels), default=0)
    width = sum(part.width for part in panels) + _GAP * max(0, len(panels) - 1)
    lines = _wrap(_legend(layout, alive, legend), width - 2 * _MARGIN)
    sheet = Image.new("RGB", (width, height + 2 * _MARGIN + len(lines) * (_TEXT + 8)), _PAPER)
    left = 0
    for part in panels:
        sheet.paste(part, (left, 0))
        left += part.width + _GAP
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, height + _MARGIN + number * (_TEXT + 8)), line, fill=_INK, font=_font())
    return sheet


def spread(image: Image.Image | Sequence[Image.Image], panels: int) -> list[Image.Image]:
    """A picture for each panel: always the same one, or frames of a video at even steps."""
    frames = [image] if isinstance(image, Image.Image) else image
    return [frames[(2 * panel + 1) * len(frames) // (2 * panels)] for panel in range(panels)]


def cell_size(rows: int, columns: int, panel: int = PANEL) -> int:
    """Pixels of a cell's side, so that the longer side of the panel is at least `panel`.

    Example:
        >>> cell_size(24, 24)
        32
    """
    return -(-panel // max(rows, columns))


def _mask(layout: ImageLayout, kept: Iterable[int]) -> torch.Tensor:
    alive = torch.zeros(layout.tokens, dtype=torch.bool)
    for token in kept:
        if not 0 <= int(token) < layout.tokens:
            raise ValueError(f"token {int(token)} is outside this picture, whose tokens are 0 to {layout.tokens - 1}")
        alive[int(token)] = True
    return alive


def _panel(image: Image.Image, alive: torch.Tensor, panel: int) -> Image.Image:
    rows, columns = alive.shape
    cell = cell_size(rows, columns, panel)
    size = columns * cell, rows * cell
    bright = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    dark = ImageEnhance.Brightness(ImageEnhance.Color(bright).enhance(0.25)).enhance(0.42)
    choice = Image.new("L", size, 0)
    pen = ImageDraw.Draw(choice)
    boxes = [
        (column * cell, row * cell, (column + 1) * cell - 1, (row + 1) * cell - 1)
        for row, column in alive.nonzero().tolist()
    ]
    for box in boxes:
        pen.rectangle(box, fill=255)
    drawn = Image.composite(bright, dark, choice)
    pen = ImageDraw.Draw(drawn)
    for box in boxes:
        pen.rectangle(box, outline=_OUTLINE)
    return drawn


def _legend(layout: ImageLayout, alive: torch.Tensor, legend: str) -> str:
    count = f"{int(alive.sum())} of {layout.tokens} tokens kept"
    if layout.has_separators:
        newlines = [token for token, patch in enumerate(layout.patches) if patch < 0]
        count += f", {int(alive[newlines].sum())} of them newlines"
    return f"{legend}: {count}" if legend else count


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT)


def _wrap(text: str, width: int) -> Sequence[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _font().getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
