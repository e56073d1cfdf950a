"""Damaged, odd and hostile image files, made one by one for the tests.

`BROKEN` cannot be read; `ODD` look wrong but hold an image. Each value writes the file at a path.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


JPEG, PNG, TIFF, WEBP, BMP = (
    encode(Image.fromarray(NOISE), kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
)
PALETTE = encode(Image.fromarray(NOISE).convert("P"), "PNG")


def content(data: bytes):
    return lambda path: path.write_bytes(data)


def part(data: bytes, share: float):
    return content(data[: int(len(data) * share)])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(width: int, height: int, *chunks: bytes, color: int = 2, depth: int = 8) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def damaged(data: bytes, at: float, length: int) -> bytes:
    start = int(len(data) * at)
    return data[:start] + bytes(length) + data[start + length :]


def damaged_exif(exif: bytes) -> bytes:
    """The noise as JPEG with these bytes as its EXIF data."""
    segment = b"Exif\0\0" + exif
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


EXIF_HEADER = b"II*\0\x08\0\0\0"
PIXELS = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in NOISE)))

BROKEN = {
    "empty": content(b""),
    "one byte": content(b"\xff"),
    "zeros": content(bytes(5000)),
    "text": content(b"<html>404 Not Found</html>"),
    "git lfs pointer": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "JPEG, head only": part(JPEG, 0.05),
    "JPEG, a quarter": part(JPEG, 0.25),
    "JPEG, half": part(JPEG, 0.5),
    "JPEG, nine tenths": part(JPEG, 0.9),
    "PNG, signature only": content(PNG[:8]),
    "PNG, header only": content(PNG[:33]),
    "PNG, half": part(PNG, 0.5),
    "PNG, nine tenths": part(PNG, 0.9),
    "TIFF, half": part(TIFF, 0.5),
    "WebP, half": part(WEBP, 0.5),
    "BMP, half": part(BMP, 0.5),
    "PNG, damaged pixels": content(damaged(PNG, 0.4, 400)),
    "PNG without pixels": content(png(64, 48)),
    "PNG of no size": content(png(0, 48, PIXELS)),
    "PNG of an unknown colour type": content(png(64, 48, PIXELS, color=5)),
    "PNG, bomb": content(png(60_000, 60_000, PIXELS)),
    "PNG, size beyond all limits": content(png(2**31 - 1, 2**31 - 1, PIXELS)),
    "PNG, pixels of another size": content(png(640, 480, PIXELS)),
    "TIFF, directory outside": content(b"II*\0" + struct.pack("<I", 10**9)),
    "TIFF, directory of itself": content(b"II*\0" + struct.pack("<IHHHII", 8, 1, 256, 4, 10**9, 8)),
    "WebP, header only": content(WEBP[:20]),
    "PostScript": content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
    "folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("gone.jpg"),
    "link to itself": to_itself,
    "pipe": lambda path: os.mkfifo(path),
}

ODD = {
    "PNG named jpg": content(PNG),
    "WebP named jpg": content(WEBP),
    "JPEG with a tail": content(JPEG + b"appended by a camera" * 100),
    "JPEG, damaged in the middle": content(damaged(JPEG, 0.5, 8)),  # libjpeg goes on
    "EXIF: noise": content(damaged_exif(NOISE.tobytes()[:400])),
    "EXIF: directory outside": content(damaged_exif(b"II*\0" + struct.pack("<I", 10**9))),
    "EXIF: endless value": content(
        damaged_exif(EXIF_HEADER + struct.pack("<HHHII", 1, 0x0112, 3, 2**31, 2**31))
    ),
    "EXIF: orientation 77": content(
        damaged_exif(EXIF_HEADER + struct.pack("<HHHIII", 1, 0x0112, 3, 1, 77, 0))
    ),
    "EXIF: orientation is text": content(
        damaged_exif(EXIF_HEADER + struct.pack("<HHHI4sI", 1, 0x0112, 2, 4, b"six\0", 0))
    ),
    "palette too short": content(
        PALETTE.replace(
            PALETTE[PALETTE.index(b"PLTE") - 4 : PALETTE.index(b"IDAT") - 4],
            png_chunk(b"PLTE", b"\x10\x20\x30" * 2),
        )
    ),
    "no palette": content(
        PALETTE.replace(PALETTE[PALETTE.index(b"PLTE") - 4 : PALETTE.index(b"IDAT") - 4], b"")
    ),
    "link to an image": lambda path: (
        path.with_suffix(".data").write_bytes(JPEG),
        path.symlink_to(path.with_suffix(".data").name),
    ),
}
