"""Several overlays on one sheet, to save as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vtprune.demo.overlay import overlay
from vtprune.demo.session import Outcome

_PANEL, _GAP, _TEXT = 384, 16, 20


def sheet(outcomes: Sequence[Outcome]) -> Image.Image:
    """Overlays of the first picture in rows of about the same length, the question above them."""
    tiles = [
        overlay(
            one.seen[0],
            one.layouts[0],
            one.stages[-1].images[0].kept,
            legend=f"{one.method} says {one.pruned.answer}",
            panel=_PANEL,
        )
        for one in outcomes
    ]
    columns = max(1, math.ceil(math.sqrt(len(tiles))))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    head = _TEXT + 2 * _GAP
    width = max(sum(tile.width + _GAP for tile in row) for row in rows) + _GAP
    height = head + sum(max(tile.height for tile in row) + _GAP for row in rows)
    made = Image.new("RGB", (width, height), "white")
    said = f"{outcomes[0].question}  With all tokens: {outcomes[0].full.answer}"
    ImageDraw.Draw(made).text((_GAP, _GAP), said, fill=(30, 30, 30), font=ImageFont.load_default(size=_TEXT))
    top = head
    for row in rows:
        left = _GAP
        for tile in row:
            made.paste(tile, (left, top))
            left += tile.width + _GAP
        top += max(tile.height for tile in row) + _GAP
    return made
