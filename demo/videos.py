"""Videos: a few frames at even steps, or a message that says what is wrong with the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
from PIL import Image, ImageSequence, UnidentifiedImageError

from vtprune.demo.pictures import MOST_PIXELS
from vtprune.eval.pictures import PictureError

FRAMES = 8
"""Frames that a model looks at."""

MOST_FRAMES = 3000
"""Later ones are not looked at, because reading them would keep other visitors waiting."""

FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf"
"""Those of FFmpeg that are read; its others include playlists, which name further files, and even plain text."""

_LONGEST = 768


@dataclass(frozen=True)
class Film:
    """A video that was read.

    Args:
        frames: RGB, in order.
        note: What the visitor would not expect; empty for most.
    """

    frames: tuple[Image.Image, ...]
    note: str = ""


def read_film(path: str | Path, *, count: int = FRAMES) -> Film:
    """Reads frames at even steps from a video file or an animated picture.

    Args:
        path: Where it lies.
        count: How many frames at most.

    Raises:
        PictureError: No video that can be read; the message is for the visitor.
    """
    file = Path(path)
    try:
        found, seen = _thinned(_frames(file), count)
    except PictureError:
        raise
    except Exception as error:
        # Decoders end in errors of many kinds where a file lies about itself.
        raise PictureError(f"{file.name} is no video that can be read ({type(error).__name__}).") from error
    if not found:
        raise PictureError(f"{file.name} has no frames; is it a video?")
    if min(found[0].size) < 8:
        raise PictureError(f"{file.name} has frames of {found[0].width} x {found[0].height}; each side needs 8 pixels.")
    cut = seen >= MOST_FRAMES
    return Film(tuple(found), f"Only the first {MOST_FRAMES} frames of {file.name} are looked at." if cut else "")


def _frames(file: Path) -> Iterator[Callable[[], Image.Image]]:
    """A way to each frame, those of animated pictures by Pillow, which reads more kinds of them."""
    try:
        with Image.open(file) as picture:
            _check_size(file, picture.width, picture.height)
            for frame in ImageSequence.Iterator(picture):
                yield partial(frame.convert, "RGB")
    except UnidentifiedImageError:
        with av.open(str(file), options={"format_whitelist": FORMATS}) as container:
            if not container.streams.video:
                return
            stream = container.streams.video[0]
            _check_size(file, stream.codec_context.width, stream.codec_context.height)
            for decoded in container.decode(stream):
                yield decoded.to_image


def _check_size(file: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise PictureError(
            f"{file.name} has {width} x {height} pixels; at most {MOST_PIXELS / 1e6:g} million are taken, "
            "so make it smaller."
        )


def _thinned(frames: Iterable[Callable[[], Image.Image]], count: int) -> tuple[list[Image.Image], int]:
    """Some frames at even steps, and how many there were; never more than a few are held at once."""
    kept: list[Image.Image] = []
    step, seen = 1, 0
    for number, frame in enumerate(frames):
        seen = number + 1
        if number % step == 0:
            picture = frame()
            picture.thumbnail((_LONGEST, _LONGEST))
            kept.append(picture)
            if len(kept) == 4 * count:
                kept, step = kept[::2], 2 * step
        if seen == MOST_FRAMES:
            break
    if len(kept) <= count:
        return kept, seen
    return [kept[(2 * place + 1) * len(kept) // (2 * count)] for place in range(count)], seen
