"""Pictures from untrusted bytes: PNG, JPEG, WebP and GIF into RGB pixels, or `InvalidImage`."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from mmesh.errors import InvalidImage

MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000

_Size = tuple[int, int]
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = Image.Transpose
_UPRIGHT = {
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}
# JPEG markers FFC0 to FFCF start a frame, which holds the size, except these three.
_NO_FRAME = (0xC4, 0xC8, 0xCC)


def decode(data: bytes, path: str, *, bare: bool = False) -> Image.Image:
    """Return the picture in `data`, upright, as RGB over white; the first frame if animated.

    The size is read from the header and checked before any pixel is decoded.

    Args:
        data: the bytes of the file.
        path: names the field in errors.
        bare: give the pixels of Pillow's `Image.open(...).convert("RGB")`, as the published code of
            many models does: not turned by EXIF, transparency dropped, 16 bits clipped.

    Raises:
        InvalidImage: `data` is no whole PNG, JPEG, WebP or GIF, or is larger than 50 megapixels
            or 20,000 pixels a side; `path` names the field.
    """
    kind = _kind(data, path)
    read_size(data, path)
    try:
        # One decoder only, so that no other of Pillow's many parsers sees the bytes.
        image = Image.open(io.BytesIO(data), formats=[kind])
        _check_size(image.size, path)
        image.load()
        return image.convert("RGB") if bare else _rgb(_upright(image))
    except InvalidImage:
        raise
    except Exception as error:  # Decoders meet hostile bytes with errors of many types.
        raise InvalidImage(path, f"is a broken {kind} file: {error}") from error


def read_size(data: bytes, path: str) -> _Size:
    """Return width and height as the header at the start of `data` states them.

    Raises:
        InvalidImage: as `decode` does, as far as the header tells.
    """
    kind = _kind(data, path)
    size = _SIZE_READERS[kind](data)
    if size is None:
        raise InvalidImage(path, f"is a broken {kind} file: its header ends early")
    _check_size(size, path)
    return size


def _kind(data: bytes, path: str) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise InvalidImage(path, "is not a PNG, JPEG, WebP or GIF file; convert it to one of them")


def _check_size(size: _Size, path: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(path, f"is {width} x {height} pixels, which is empty")
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise InvalidImage(
            path,
            f"is {width} x {height} pixels; at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} "
            "a side are allowed; make it smaller",
        )


def _png_size(data: bytes) -> _Size | None:
    if len(data) < 24:
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _gif_size(data: bytes) -> _Size | None:
    if len(data) < 10:
        return None
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _webp_size(data: bytes) -> _Size | None:
    if len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if chunk == b"VP8L":
        bits = _little(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    return None


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _jpeg_size(data: bytes) -> _Size | None:
    place = 2
    while place + 9 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return int.from_bytes(width), int.from_bytes(height)
        # Fill bytes and markers without a body are one or two bytes long.
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        body = int.from_bytes(data[place + 2 : place + 4])
        place += 1 if marker == 0xFF else 2 if alone else 2 + max(body, 2)
    return None


_SIZE_READERS: dict[str, Callable[[bytes], _Size | None]] = {
    "PNG": _png_size,
    "JPEG": _jpeg_size,
    "GIF": _gif_size,
    "WEBP": _webp_size,
}


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Broken EXIF says nothing about the pixels, which are fine.
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if "A" in image.getbands() or "transparency" in image.info:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Keep the high byte of each value; Pillow's own conversion would cut all above 255."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas
