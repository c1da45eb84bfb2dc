"""Uploads: a picture that a model can look at, or a message that says what is wrong with the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtprune.eval.pictures import PictureError, open_picture

MOST_PIXELS = 40_000_000
"""More are refused before they are decoded: each takes four bytes and more, for every visitor."""


@dataclass(frozen=True)
class Upload:
    """A file that was read.

    Args:
        picture: Upright RGB.
        note: What was done to it that the visitor would not expect; empty for most.
    """

    picture: Image.Image
    note: str = ""


def read_upload(path: str | Path | None, *, name: str | None = None) -> Upload:
    """Reads an upload.

    Args:
        path: Where it lies; `None` if there is none.
        name: What the visitor calls it; by default the name of the file.

    Raises:
        PictureError: Nothing there, or no picture that can be used; the message is for the visitor.
    """
    if path is None or not str(path):
        raise PictureError("There is no picture yet: upload one, paste one, use the camera or pick an example.")
    file = Path(path)
    called = name or file.name
    try:
        picture = open_picture(file, name=called, first_frame=True, most_pixels=MOST_PIXELS)
        note = _note(file, called)
    except PictureError as error:
        text = str(error)
        raise PictureError(f"{text if text.startswith(called) else text[0].upper() + text[1:]}.") from error
    except Exception as error:
        # Pillow's readers end in errors of many kinds (struct, zlib, index) where a file lies about itself.
        raise PictureError(f"{called} is damaged or cannot be read ({type(error).__name__}).") from error
    return Upload(picture, note)


def _note(file: Path, called: str) -> str:
    with Image.open(file) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            return f"{called} is an animation of {frames} frames; only the first one is looked at."
        if image.mode == "CMYK":
            return f"{called} has the colours of print (CMYK); they were converted to RGB."
    return ""
