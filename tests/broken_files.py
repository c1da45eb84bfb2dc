"""Files as visitors should not send them."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def noise(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def broken_file(rng: random.Random, number: int, *, always: bool = False) -> tuple[str, bytes]:
    """Name and bytes of a file that is no picture; unless `always`, it sometimes is one after all."""
    kind = FORMATS[number % len(FORMATS)]
    data = bytearray(encoded(noise(), kind))
    match rng.randrange(4 if always else 5):
        case 0:
            data = data[: rng.randrange(len(data) // 2 if always else len(data))]
        case 4:
            for _ in range(rng.randrange(1, 40)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 1:
            data = bytearray(rng.randbytes(rng.randrange(400)))
        case 2:
            data = bytearray(huge_png(rng.choice((0, 1, 9000, 2**31 - 1)), rng.choice((0, 1, 9000, 2**31 - 1))))
        case _:
            data = bytearray("words ".encode(rng.choice(("utf-8", "utf-16"))) * rng.randrange(50))
    return f"file{number}.{rng.choice(('png', 'jpg', 'gif', 'txt', 'webp'))}", bytes(data)
