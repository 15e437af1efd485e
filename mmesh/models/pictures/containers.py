"""Container formats of pictures: kind, size, cost, orientation, and a file without metadata.

Pillow reads metadata with loops in Python, and some of it by following offsets, so that a small
file can cost minutes or gigabytes before a pixel is decoded. Here each format is walked once, in
a bounded number of steps, and only what has to do with the first frame's pixels is handed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmesh.models.pictures import BrokenPicture, jpeg

MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
MAX_CHUNKS = 32_768
"""Chunks or blocks of a file that are looked at."""
SCANS_A_PASS = 4
FEW_SEGMENTS = 32
"""Segments of a JPEG in which its size nearly always is."""
MAX_XMP_BYTES = 1 << 16
_ORIENTATION_TAG = 0x0112
_SHORT = 3
MAX_TAGS = 512
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_XMP_KEY = b"XML:com.adobe.xmp\0\0"
_PNG, _PNG_START = "PNG", b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = b"IHDR"
_CHECKSUM = 4
_FEW = 8
"""Bytes at the end of a PNG's pixels without which a decoder may do."""
_FILLING = bytes(16)
"""What comes after a JPEG that has no end and is padded; decoders take it."""
_PIXEL_CHUNKS = frozenset((_PNG_HEADER, b"PLTE", b"tRNS", b"IDAT", b"IEND"))
FEW_BLOCKS = 32
"""Blocks of a GIF before its first frame in which that frame nearly always follows."""
_GIF_CONTROL, _GIF_FRAME = b"!\xf9", b","
_GIF_PART = re.compile(rb"[!,;]")
"""What begins a block, a frame or the end; decoders skip anything else."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Container:
    """A picture file, not decoded."""

    kind: str
    """PNG, JPEG, GIF or WEBP."""
    data: bytes
    """The file without what the pixels of its first frame do not need."""
    orientation: int = 1
    """How to turn it upright, as EXIF numbers it."""


def kind_of(data: bytes) -> str:
    """Return the format by the first bytes, or raise `BrokenPicture`."""
    if data.startswith(_PNG_START):
        return _PNG
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise BrokenPicture("is not a PNG, JPEG, WebP or GIF file; convert it to one of them")


def size_of(data: bytes) -> Size | None:
    """Return width and height as the header states them; None when it ends early."""
    return _SIZES[kind_of(data)](data)


def check_size(size: Size) -> None:
    """Raise `BrokenPicture` when a picture is empty or larger than allowed."""
    width, height = size
    if width < 1 or height < 1:
        raise BrokenPicture(f"is {width} x {height} pixels, which is empty")
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise BrokenPicture(
            f"is {width} x {height} pixels; at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} "
            "a side are allowed; make it smaller"
        )


def soon_size_of(data: bytes) -> Size | None:
    """Return width and height if a few steps tell them."""
    kind = kind_of(data)
    if kind == "JPEG":
        return jpeg.size_of(data, FEW_SEGMENTS)
    return _gif_size(data, FEW_BLOCKS) if kind == "GIF" else size_of(data)


def passes_of(data: bytes) -> int:
    """Return about how often the pixels are gone over when they are decoded, at least once."""
    kind = kind_of(data)
    if kind == "JPEG":  # a scan costs a fraction of decoding, and more are never met than counted
        return 1 + data.count(jpeg.SCAN) // SCANS_A_PASS
    return 1 if kind == "GIF" else 2


def read(data: bytes) -> Container:
    """Return what the file holds.

    Raises:
        BrokenPicture: it is no picture, or has too many parts to be looked at.
    """
    return _READERS[kind_of(data)](data)


def is_cut_off(data: bytes) -> bool:
    """Tell whether a file that has a size visibly ends before its pixels do; it may all the same.

    Raises:
        BrokenPicture: as `read` does.
    """
    kind = kind_of(data)
    if kind == "JPEG":
        return jpeg.END not in read(data).data and not data.endswith(_FILLING)
    if kind == "WEBP":  # a last byte that only fills up may be left away
        return 8 + _little(data[4:8]) > len(data) + 1
    if kind == _PNG:
        return any(
            name == b"IDAT" and start + 8 + _big(data[start : start + 4]) > len(data) + _FEW
            for name, start, _ in _chunks(data, len(_PNG_START), _CHECKSUM, "big")
        )
    return False


# -- sizes


def _png_size(data: bytes) -> Size | None:
    if len(data) < 24:
        return None
    if data[12:16] != _PNG_HEADER:
        raise BrokenPicture("is a broken PNG file: it does not begin with its header")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _gif_size(data: bytes, most: int = MAX_CHUNKS) -> Size | None:
    """Return the size of the canvas, which decoders grow to hold the first frame."""
    if len(data) < 10:
        return None
    sides = [_little(data[place : place + 2]) for place in (6, 8)]
    try:
        for start, _ in _gif_parts(data, most):
            if data.startswith(_GIF_FRAME, start):
                left, top, width, height = (
                    _little(data[start + place : start + place + 2]) for place in (1, 3, 5, 7)
                )
                sides = [max(sides[0], left + width), max(sides[1], top + height)]
    except BrokenPicture:
        if most < MAX_CHUNKS:
            return None
        raise
    return sides[0], sides[1]


def _webp_size(data: bytes) -> Size | None:
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


def _big(data: bytes) -> int:
    return int.from_bytes(data)


_SIZES: dict[str, Callable[[bytes], Size | None]] = {
    _PNG: _png_size,
    "JPEG": jpeg.size_of,
    "GIF": _gif_size,
    "WEBP": _webp_size,
}


# -- files without metadata


def _png(data: bytes) -> Container:
    """Keep the chunks that pixels need; texts and colour profiles may be of any size."""
    kept, exif, xmp = [_PNG_START], b"", b""
    for name, start, end in _chunks(data, len(_PNG_START), _CHECKSUM, "big"):
        if (name == _PNG_HEADER) != (start == len(_PNG_START)):  # decoders may take the last one
            raise BrokenPicture("is a broken PNG file: it must have one header, at its start")
        if name in _PIXEL_CHUNKS:
            kept.append(data[start:end])
        elif name == b"eXIf":
            exif = data[start + 8 : end - 4]
        elif name == b"iTXt" and data.startswith(_XMP_KEY, start + 8):
            xmp = data[start + 8 : min(end, start + 8 + MAX_XMP_BYTES)]
        if name == b"IEND":
            break
    return Container(_PNG, b"".join(kept), orientation_of(exif, xmp))


def _webp(data: bytes) -> Container:
    """Find the orientation; libwebp reads the file as it is, in time linear in its length."""
    exif = xmp = b""
    for name, start, end in _chunks(data, 12, 0, "little"):
        if name == b"EXIF":
            exif = data[start + 8 : end]
        elif name == b"XMP ":
            xmp = data[start + 8 : min(end, start + 8 + MAX_XMP_BYTES)]
    return Container("WEBP", data, orientation_of(exif, xmp))


def _chunks(data: bytes, place: int, checksum: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of chunks: length and name in 8 bytes, the body, a checksum."""
    big = order == "big"
    for _ in range(MAX_CHUNKS):
        if place + 8 > len(data):
            return
        first, second = data[place : place + 4], data[place + 4 : place + 8]
        name, length = (second, int.from_bytes(first)) if big else (first, _little(second))
        end = place + 8 + length + checksum
        yield name, place, min(end, len(data))
        place = end if big else end + length % 2
    raise BrokenPicture(f"has over {MAX_CHUNKS:,} chunks, more than are read; save it anew")


def _gif(data: bytes) -> Container:
    """Keep the header, how the first frame is drawn, and all from that frame on."""
    if len(data) < 13:
        raise BrokenPicture("is a broken GIF file: its header ends early")
    kept = [data[: _end_of_gif_header(data)]]
    for start, end in _gif_parts(data, MAX_CHUNKS):
        if data.startswith((_GIF_CONTROL, _GIF_FRAME), start):
            kept.append(data[start:end])
    return Container("GIF", b"".join(kept))


def _end_of_gif_header(data: bytes) -> int:
    flags = data[10] if len(data) > 10 else 0
    return 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)


def _gif_parts(data: bytes, most: int) -> Iterator[Size]:
    """Yield start and end of blocks, and at last of the first frame with all that follows it."""
    place, steps = _end_of_gif_header(data), iter(range(most))
    while found := _GIF_PART.search(data, place):
        start = found.start()
        if found[0] == b";":
            return
        if found[0] == _GIF_FRAME:
            yield start, len(data)
            return
        place = _end_of_blocks(data, start + 2, steps)
        yield start, place


def _end_of_blocks(data: bytes, place: int, steps: Iterator[int]) -> int:
    for _ in steps:
        length = data[place] if place < len(data) else 0
        place += 1 + length
        if not length:
            return place
    raise BrokenPicture(f"has over {MAX_CHUNKS:,} blocks before its first frame; save it anew")


def _jpeg(data: bytes) -> Container:
    header = jpeg.read_header(data)
    return Container("JPEG", header.without_metadata(), orientation_of(header.exif, header.xmp))


_READERS: dict[str, Callable[[bytes], Container]] = {
    _PNG: _png,
    "JPEG": _jpeg,
    "GIF": _gif,
    "WEBP": _webp,
}


# -- orientation


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """Return the orientation that EXIF states, else XMP, else 1: upright.

    Only the first directory's entries are looked at; nothing is followed.
    """
    found = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    if found is None and (match := _XMP_ORIENTATION.search(xmp[:MAX_XMP_BYTES])):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_orientation(tiff: bytes) -> int | None:
    orders: dict[bytes, Callable[[bytes], int]] = {b"II*\0": _little, b"MM\0*": _big}
    if (order := orders.get(tiff[:4])) is None:
        return None
    start = order(tiff[4:8])
    count = min(order(tiff[start : start + 2]), MAX_TAGS)
    for number in range(count):
        entry = tiff[start + 2 + 12 * number : start + 14 + 12 * number]
        if len(entry) == 12 and order(entry[:2]) == _ORIENTATION_TAG:
            short = order(entry[2:4]) == _SHORT
            return order(entry[8:10] if short else entry[8:12])
    return None
