"""Opening picture files, with an answer to everything that can be wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

SMALLEST = 8
"""Pixels that each side of a picture must have; processors fail in strange ways on less."""


class PictureError(ValueError):
    """A file that is no usable picture; the message says which and why."""


def open_picture(
    path: Path, *, name: str | None = None, first_frame: bool = False, most_pixels: int | None = None
) -> Image.Image:
    """Reads a still picture as upright RGB; transparent parts become white, CMYK and 16-bit grey are converted.

    Args:
        path: The file.
        name: What messages call it; by default the path.
        first_frame: Whether an animation stands for its first frame instead of being refused.
        most_pixels: More are refused before anything is decoded.

    Raises:
        PictureError: Missing, unreadable, damaged, animated, huge or tiny.
    """
    called = str(path) if name is None else name
    if not path.exists():
        raise PictureError(f"picture {called} does not exist")
    if not path.is_file():
        raise PictureError(f"picture {called} is no file")
    try:
        with Image.open(path) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise PictureError(
                    f"picture {called} has {image.width} x {image.height} pixels; "
                    f"at most {most_pixels / 1e6:g} million are taken, so make it smaller"
                )
            frames = 1 if first_frame else getattr(image, "n_frames", 1)
            if frames > 1:
                raise PictureError(
                    f"picture {called} is an animation of {frames} frames; save one of them as a picture"
                )
            with _whole_files_only():
                image.load()
            upright = ImageOps.exif_transpose(image)
            picture = _to_rgb(upright)
    except UnidentifiedImageError as error:
        raise PictureError(f"{called} is no picture in a format that Pillow reads") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"picture {called} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"picture {called} is damaged or cannot be read: {error}") from error
    if min(picture.size) < SMALLEST:
        width, height = picture.size
        raise PictureError(f"picture {called} has {width} x {height} pixels; each side needs at least {SMALLEST}")
    return picture


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Undoes what lmms-eval switches on for the whole process: grey for the missing part of damaged files."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # convert() would cut 16-bit values off at 255.
        values = np.asarray(image, dtype=np.int64)
        return Image.fromarray((values // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def seen_picture(inputs: Any, processor: Any, view: int = 0) -> Image.Image | None:
    """A view as the encoder gets it, cropped and scaled; `None` where views are no pictures.

    Args:
        inputs: Output of the processor.
        processor: It knows the mean and deviation that were taken out.
        view: Which one; where pictures have one view each, the number of the picture.
    """
    pixels = inputs.get("pixel_values")
    settings = getattr(processor, "image_processor", None)
    mean, deviation = getattr(settings, "image_mean", None), getattr(settings, "image_std", None)
    if pixels is None or pixels.dim() != 4 or pixels.shape[1] != 3 or mean is None or deviation is None:
        return None
    values = pixels[view].float().cpu().numpy().transpose(1, 2, 0)
    restored = values * np.asarray(deviation) + np.asarray(mean)
    return Image.fromarray((restored * 255).round().clip(0, 255).astype(np.uint8))
