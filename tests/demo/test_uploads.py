from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest
from broken_files import FORMATS, broken_file, encoded, huge_png, noise
from PIL import Image

from vtprune.demo.pictures import MOST_PIXELS, read_upload
from vtprune.eval.pictures import PictureError


def refused(path: Path | None) -> str:
    with pytest.raises(PictureError) as error:
        read_upload(path)
    return str(error.value)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_no_picture(tmp_path: Path) -> None:
    assert "no picture yet" in refused(None)
    assert "gone.png does not exist" in refused(tmp_path / "gone.png")


def test_messages_do_not_tell_where_uploads_lie(tmp_path: Path) -> None:
    said = refused(write(tmp_path, "notes.txt", b"hello"))
    assert said == "notes.txt is no picture in a format that Pillow reads."


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(tmp_path: Path, kind: str) -> None:
    whole = encoded(noise(), kind)
    assert "cut.bin is " in refused(write(tmp_path, "cut.bin", whole[: len(whole) // 3]))


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (7, 7)])
def test_tiny(tmp_path: Path, size: tuple[int, int]) -> None:
    said = refused(write(tmp_path, "dot.png", encoded(noise(*size), "PNG")))
    assert f"has {size[0]} x {size[1]} pixels; each side needs at least 8" in said


@pytest.mark.parametrize("size", [(8000, 8000), (30000, 20000), (2**30, 2**30)])
def test_huge_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = refused(write(tmp_path, "wall.png", huge_png(*size)))
    assert "pixels" in said or "large" in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert size[0] * size[1] > MOST_PIXELS


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / "film.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    found = read_upload(path)
    assert found.picture.getpixel((10, 10)) == (255, 0, 0)
    assert found.note == "film.gif is an animation of 3 frames; only the first one is looked at."


def test_colours_of_print_are_converted(tmp_path: Path) -> None:
    found = read_upload(write(tmp_path, "print.jpg", encoded(noise(mode="CMYK"), "JPEG")))
    assert found.picture.mode == "RGB"
    assert "print.jpg has the colours of print (CMYK)" in found.note


def test_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    found = read_upload(write(tmp_path, "picture.txt", encoded(noise(), "PNG")))
    assert found.picture.size == (40, 30)
    assert found.note == ""


def test_two_hundred_broken_files(tmp_path: Path) -> None:
    """Each gives a picture that can be used or a message, and memory stays where it is."""
    rng = random.Random(1)
    refusals = 0
    before = 0
    for number in range(200):
        path = write(tmp_path, *broken_file(rng, number))
        said = ""
        try:
            found = read_upload(path)
        except PictureError as error:
            said = str(error)
        if said:
            refusals += 1
            assert said.endswith(".")
            assert path.name in said
            assert str(tmp_path) not in said
        else:
            assert found.picture.mode == "RGB"
            assert min(found.picture.size) >= 8
        if number == 100:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusals > 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
