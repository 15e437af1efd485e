"""Segments of JPEG files: the header's, without its metadata, and how many scans there are.

A progressive JPEG may have any number of scans, of a few bytes each, and every one goes over all
pixels: a file of 100 KB can take minutes (a scan bomb).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mmesh.models.pictures import BrokenPicture

MAX_SCANS = 64
"""libjpeg writes 10, the best optimisers up to about 20."""
MAX_SEGMENTS = 4_096
FEW_SCANS = 16
"""So many markers that look like scans need no closer look."""
SCAN = b"\xff\xda"
END = b"\xff\xd9"
_START, _IMAGE_END, _SCAN, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_JFIF, _EXIF, _ADOBE, _LAST_APP = 0xE0, 0xE1, 0xEE, 0xEF
_NO_FRAME = (0xC4, 0xC8, 0xCC)
"""Markers C0 to CF start a frame, which holds the size, except these three."""
_ANY = re.compile(rb"\xff[^\xff]", re.DOTALL)
_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""A marker among the data of a scan; it is not a stuffed byte, and no restart."""
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


class Segment(NamedTuple):
    """A part of the file that begins with a marker."""

    marker: int
    start: int
    end: int
    """Behind its body."""


class Header(NamedTuple):
    """What comes before the first scan."""

    data: bytes
    segments: list[Segment]

    @property
    def exif(self) -> bytes:
        """The first EXIF block; empty without one."""
        return self._app(b"Exif\0\0")

    @property
    def xmp(self) -> bytes:
        """The XMP block; empty without one."""
        return self._app(_XMP)

    def _app(self, start: bytes) -> bytes:
        for segment in self.segments:
            if segment.marker == _EXIF and self.data.startswith(start, segment.start + 4):
                return self.data[segment.start + 4 : segment.end]
        return b""

    def without_metadata(self) -> bytes:
        """Return the file with those segments only that have to do with pixels."""
        kept = [self.data[s.start : s.end] for s in self.segments if _is_needed(s.marker)]
        return b"".join([self.data[:2], *kept, self.data[self.segments[-1].end :]])


def _is_needed(marker: int) -> bool:
    return marker in (_JFIF, _ADOBE) or not (_JFIF < marker <= _LAST_APP or marker == _COMMENT)


def read_header(data: bytes) -> Header:
    """Return the segments up to the first scan.

    Raises:
        BrokenPicture: there is none among the first segments.
    """
    segments = list(_segments(data))
    if not segments or segments[-1].marker != _SCAN:
        raise BrokenPicture(f"is a broken JPEG file: no scan in {len(segments):,} segments")
    return Header(data, segments)


def size_of(data: bytes, most: int = MAX_SEGMENTS) -> tuple[int, int] | None:
    """Return width and height; None when no frame is found among the first segments."""
    for segment in _segments(data, most):
        place = segment.start
        if 0xC0 <= segment.marker <= 0xCF and segment.marker not in _NO_FRAME:
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return None if len(width) < 2 else (int.from_bytes(width), int.from_bytes(height))
    return None


def _segments(data: bytes, most: int = MAX_SEGMENTS) -> Iterator[Segment]:
    place = 2
    for _ in range(most):
        found = _ANY.search(data, place)
        if found is None:
            return
        marker, start = data[found.end() - 1], found.start()
        if marker == _IMAGE_END:
            return
        if not marker or _stands_alone(marker):
            place = found.end()
            continue
        place = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4]))
        yield Segment(marker, start, place)
        if marker == _SCAN:
            return


def _stands_alone(marker: int) -> bool:
    return marker == 0x01 or 0xD0 <= marker <= _START


def count_scans(data: bytes) -> int:
    """Return how many scans a decoder meets, never fewer; over `MAX_SCANS`, some number above.

    Whatever may be a scan counts: data behind a marker that a decoder may take for damage is
    looked at, too.
    """
    place, scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        found = (_IN_SCAN if scans else _ANY).search(data, place)
        if found is None:
            return scans
        marker, place = data[found.end() - 1], found.end()
        if marker == _IMAGE_END and scans:
            return scans
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            return scans
        if marker >= 0xC0 and not _stands_alone(marker) and marker != _IMAGE_END:
            place += max(2, int.from_bytes(data[place : place + 2]))
    return MAX_SCANS + 1
