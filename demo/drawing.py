"""Which tokens survive, as a vector picture for the browser: kept cells bright, dropped ones dim."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from typing import Literal

from PIL import Image

from vtprune.demo.overlay import spread
from vtprune.demo.watching import Watched
from vtprune.layout import ImageLayout

View = Literal["kept", "scores", "groups"]

CELL = 10
"""Units of a cell's side."""

_SHOWN = 768
_numbers = count()

# Viridis at even steps: it reads well in grey and with any colour vision.
_HEAT = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass(frozen=True)
class Look:
    """How an overlay is drawn.

    Args:
        view: `"kept"` for the survivors, `"scores"` for what tokens were ranked by, `"groups"` for what was merged.
        grid: Whether lines between all cells are drawn.
    """

    view: View = "kept"
    grid: bool = False


def overlay_html(
    picture: Image.Image | Sequence[Image.Image], layout: ImageLayout, seen: Watched, look: Look | None = None
) -> str:
    """One panel for each grid of tokens: thumbnail and crops, or the frames of a video."""
    chosen = look or Look()
    shown = spread(picture, len(layout.grids))
    sources = {id(each): data_uri(each) for each in shown}
    title = escape(f"{len(seen.kept)} of {layout.tokens} tokens kept", quote=True)
    panels = []
    for each, grid in zip(shown, layout.grids, strict=True):
        cells = {
            int(token): (row, column) for row, tokens in enumerate(grid.tolist()) for column, token in enumerate(tokens)
        }
        panels.append(_panel(sources[id(each)], title, grid.shape[0], grid.shape[1], cells, seen, chosen))
    if len(panels) <= 2:
        return f'<div class="overlay">{"".join(panels)}</div>'
    kept = [len(set(seen.kept).intersection(grid.flatten().tolist())) for grid in layout.grids]
    strip = "".join(
        f"<figure>{panel}<figcaption>{number}: {count} of {grid.numel()} kept</figcaption></figure>"
        for number, (panel, count, grid) in enumerate(zip(panels, kept, layout.grids, strict=True), 1)
    )
    # A strip scrolls sideways, which needs the focus when there is no mouse.
    return f'<div class="overlay strip" tabindex="0">{strip}</div>'


def _panel(
    source: str,
    title: str,
    rows: int,
    columns: int,
    cells: Mapping[int, tuple[int, int]],
    seen: Watched,
    look: Look,
) -> str:
    width, height = columns * CELL, rows * CELL
    number = next(_numbers)
    image = (
        f'<image href="{source}" width="{width}" height="{height}" preserveAspectRatio="none" '
        'style="image-rendering:auto"'
    )
    kept = [token for token in seen.kept if token in cells]
    clip = "".join(_square(cells[token]) for token in kept)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}" data-view="{look.view}">',
        f'<clipPath id="kept{number}"><path d="{clip}"/></clipPath>',
        f'{image} class="dim"/>',
        f'{image} clip-path="url(#kept{number})"/>',
    ]
    if look.view == "scores":
        parts += _heat(cells, seen.scores)
    if look.view == "groups":
        parts += _groups(cells, seen.owners)
    if look.grid:
        lines = "".join(f"M0 {row * CELL}H{width}" for row in range(1, rows))
        lines += "".join(f"M{column * CELL} 0V{height}" for column in range(1, columns))
        parts.append(f'<path class="lines" d="{lines}"/>')
    for token in kept:
        row, column = cells[token]
        parts.append(
            f'<rect class="kept" x="{column * CELL + 0.5}" y="{row * CELL + 0.5}" width="{CELL - 1}" '
            f'height="{CELL - 1}"/>'
        )
    return "".join(parts) + "</svg>"


def _square(cell: tuple[int, int]) -> str:
    row, column = cell
    return f"M{column * CELL} {row * CELL}h{CELL}v{CELL}h-{CELL}z"


def _heat(cells: Mapping[int, tuple[int, int]], scores: Mapping[int, float]) -> Iterator[str]:
    """Colours by rank, because a few scores often tower above all others."""
    order = sorted((token for token in scores if token in cells), key=lambda token: scores[token])
    for rank, token in enumerate(order):
        colour = heat_colour(rank / max(1, len(order) - 1))
        row, column = cells[token]
        yield (
            f'<rect class="heat" x="{column * CELL}" y="{row * CELL}" width="{CELL}" height="{CELL}" fill="{colour}">'
            f"<title>row {row + 1}, column {column + 1}: {scores[token]:.4g}</title></rect>"
        )


def _groups(cells: Mapping[int, tuple[int, int]], owners: Mapping[int, int]) -> Iterator[str]:
    sizes: dict[int, int] = {}
    for owner in owners.values():
        sizes[owner] = sizes.get(owner, 0) + 1
    colours = group_colours(sorted(owner for owner, size in sizes.items() if size > 1))
    for token, owner in owners.items():
        if owner in colours and token in cells:
            row, column = cells[token]
            yield (
                f'<path class="group" d="{_square((row, column))}" fill="{colours[owner]}">'
                f"<title>one of {sizes[owner]} tokens merged into one</title></path>"
            )


def heat_colour(share: float) -> str:
    """From dark to bright as the share goes from 0 to 1.

    Example:
        >>> heat_colour(0), heat_colour(1)
        ('rgb(68,1,84)', 'rgb(253,231,37)')
    """
    place = min(max(share, 0.0), 1.0) * (len(_HEAT) - 1)
    low = min(int(place), len(_HEAT) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(_HEAT[low], _HEAT[low + 1], strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def group_colours(owners: Collection[int]) -> dict[int, str]:
    """A colour for each group; neighbours in the list are far apart in hue."""
    return {
        owner: f"hsl({place * 137.508 % 360:.0f} 75% {(62, 48, 74)[place % 3]}%)" for place, owner in enumerate(owners)
    }


def data_uri(picture: Image.Image, longest: int = _SHOWN) -> str:
    """The picture as the address of itself, its longer side about as long as that."""
    shown = picture.convert("RGB")
    if max(shown.size) > longest:
        shown.thumbnail((longest, longest))
    elif max(shown.size) <= longest // 2:
        # Browsers blur small pictures when they enlarge them.
        factor = longest // max(shown.size)
        shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
