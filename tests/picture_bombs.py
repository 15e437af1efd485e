"""Pictures that are small and dear."""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from mmesh.models.pictures import jpeg


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture as a file of a kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_with_scans(scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("L", (64, 64), 90), "JPEG", progressive=True)
    last = data.rindex(jpeg.SCAN)
    data = data[:-2] + data[last:-2] * (scans - data.count(jpeg.SCAN)) + data[-2:]
    frame = data.index(b"\xff\xc2")
    return data[: frame + 5] + struct.pack(">HH", size[1], size[0]) + data[frame + 9 :]


@cache
def large(kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Return a picture of 12 megapixels, which is decoded in a process apart."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.NEAREST).convert(mode)
    options = {"lossless": True, "method": 0} if kind == "WEBP" else {"compress_level": 1}
    return encoded(image, kind, **(options if kind in ("PNG", "WEBP") else {}))


@cache
def slow() -> bytes:
    """Return a picture of 49 megapixels, about the dearest that is allowed."""
    return encoded(Image.new("RGB", (7000, 7000)), "WEBP", lossless=True, method=0)
