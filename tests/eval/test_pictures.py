from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vtprune.eval.pictures import PictureError, open_picture, seen_picture


def _animated(path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.png", lambda path: None, "does not exist"),
        ("folder.png", lambda path: path.mkdir(), "is no file"),
        ("text.png", lambda path: path.write_text("hello"), "no picture in a format"),
        ("empty.png", lambda path: path.write_bytes(b""), "no picture in a format"),
        ("short.png", _truncated, "damaged"),
        ("short.jpg", _truncated, "damaged"),
        ("moving.gif", _animated, "animation of 3 frames"),
        ("dot.png", lambda path: Image.new("RGB", (1, 1)).save(path), "1 x 1 pixels"),
        ("line.png", lambda path: Image.new("RGB", (500, 2)).save(path), "500 x 2 pixels"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(PictureError, match=message) as caught:
        open_picture(path)
    assert str(path) in str(caught.value)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="too large"):
        open_picture(path)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),
        ("a.png", Image.new("RGBA", (16, 16), (0, 0, 0, 0)), (255, 255, 255)),
        ("b.png", Image.fromarray(np.full((16, 16), 128 * 256, dtype=np.uint16)), (128, 128, 128)),
        ("c.png", Image.new("1", (16, 16), 1), (255, 255, 255)),
        ("d.png", Image.new("L", (16, 16), 77), (77, 77, 77)),
        ("e.gif", Image.new("P", (16, 16), 0), (0, 0, 0)),
    ],
)
def test_modes_become_rgb(tmp_path: Path, name: str, image: Image.Image, expected: tuple[int, int, int]) -> None:
    image.save(tmp_path / name)
    picture = open_picture(tmp_path / name)
    assert picture.mode == "RGB"
    found = picture.getpixel((8, 8))
    assert isinstance(found, tuple)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (20, 30)


class _Settings:
    image_mean = (0.5, 0.4, 0.3)
    image_std = (0.2, 0.3, 0.4)


class _Processor:
    image_processor = _Settings()


def test_seen_picture_undoes_the_normalisation() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    pixels = (picture / 255 - np.array(_Settings.image_mean)) / np.array(_Settings.image_std)
    inputs = {"pixel_values": torch.tensor(pixels).permute(2, 0, 1)[None].float()}
    seen = seen_picture(inputs, _Processor())
    assert seen is not None
    assert np.array_equal(np.asarray(seen), picture)
    assert seen_picture({"pixel_values": torch.zeros(1, 2, 3, 4, 4)}, _Processor()) is None
