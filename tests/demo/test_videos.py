from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vtprune.demo import videos
from vtprune.demo.videos import read_film
from vtprune.eval.pictures import PictureError


def brighter(frames: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Frames from black to white."""
    return [Image.new("RGB", size, (255 * number // frames,) * 3) for number in range(frames)]


def save_film(path: Path, frames: list[Image.Image]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame))))
        container.mux(stream.encode())
    return path


def shades(path: Path) -> list[int]:
    return [round(float(np.asarray(frame).mean())) for frame in read_film(path).frames]


@pytest.mark.parametrize("frames", [9, 40, 97])
@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_frames_are_at_even_steps(tmp_path: Path, name: str, frames: int) -> None:
    pictures = brighter(frames)
    path = tmp_path / name
    if name.endswith("gif"):
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
    else:
        save_film(path, pictures)
    found = shades(path)
    assert len(found) == 8
    for place, shade in enumerate(found):
        assert abs(shade - 255 * (2 * place + 1) / 16) < 255 / 8


def test_a_short_film_is_taken_whole(tmp_path: Path) -> None:
    assert len(read_film(save_film(tmp_path / "film.mp4", brighter(3))).frames) == 3
    brighter(1)[0].save(tmp_path / "still.png")
    assert len(read_film(tmp_path / "still.png").frames) == 1


def test_a_long_film_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MOST_FRAMES", 20)
    found = read_film(save_film(tmp_path / "film.mp4", brighter(40)))
    assert found.note == "Only the first 20 frames of film.mp4 are looked at."
    assert np.asarray(found.frames[-1]).mean() < 128


def test_large_frames_become_smaller(tmp_path: Path) -> None:
    (frame,) = read_film(save_film(tmp_path / "film.mp4", brighter(1, (1600, 800)))).frames
    assert frame.size == (768, 384)


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    whole = save_film(tmp_path / "film.mp4", brighter(30)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    (tmp_path / "notes.txt").write_text("hello " * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    # FFmpeg would open the files that such a list names.
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path / 'film.mp4'}\n")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'film.mp4'}\n")
    for name in ("cut.mp4", "notes.txt", "empty.mp4", "list.m3u8", "list.mp4"):
        with pytest.raises(PictureError, match=f"{name} is no video that can be read"):
            read_film(tmp_path / name)


def test_huge_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MOST_PIXELS", 1000)
    for path in (save_film(tmp_path / "film.mp4", brighter(2)), tmp_path / "film.gif"):
        if path.suffix == ".gif":
            brighter(1)[0].save(path)
        with pytest.raises(PictureError, match=r"64 x 48 pixels; at most 0\.001 million"):
            read_film(path)
