"""Pictures from untrusted bytes: PNG, JPEG, WebP and GIF into RGB pixels, or `InvalidImage`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from PIL import Image

from mmesh.content import Content
from mmesh.errors import InvalidImage, MmeshError, Overloaded
from mmesh.models.pictures import BrokenPicture, containers, jpeg
from mmesh.models.pictures.containers import Size
from mmesh.models.pictures.pixels import open_picture, pixels_of, plain_pixels_of
from mmesh.models.pictures.pool import DecoderPool, Wanted

MAX_SCANNED_PIXELS = 600_000_000
"""Pixels times scans of a JPEG; that many take about 2.5 s."""
LARGE_WORK = 4_000_000
"""Work of the pictures of a content (see `work_of`) from which it is prepared on threads for large
ones: about 0.03 s. So nobody's picture waits for large ones of others."""
APART_WORK = 16_000_000
"""Work of a picture (see `work_of`) from which it is decoded in a process of its own, where there
is one: about 0.1 s, beside which handing over the pixels counts for little. See docs/adr/0027."""


@dataclass(frozen=True, slots=True)
class _Apart:
    pool: DecoderPool
    wanted: Wanted


_apart: ContextVar[_Apart | None] = ContextVar("apart", default=None)


@contextmanager
def decoding_apart(pool: DecoderPool, wanted: Wanted) -> Iterator[None]:
    """Let this thread decode dear pictures in processes of `pool`, while `wanted()` holds."""
    token = _apart.set(_Apart(pool, wanted))
    try:
        yield
    finally:
        _apart.reset(token)


def decode(data: bytes, path: str, *, bare: bool = False) -> Image.Image:
    """Return the picture in `data`, upright, as RGB over white; the first frame if animated.

    Size and cost are read from the file and checked before any pixel is decoded. A transparent
    picture of which nothing is seen on white is laid on black. One of over 24 megapixels is
    reduced to half its sides.

    Args:
        data: the bytes of the file.
        path: names the field in errors.
        bare: give the pixels of Pillow's `Image.open(...).convert("RGB")`, as the published code of
            many models does: not turned by EXIF, transparency dropped, 16 bits clipped.

    Raises:
        InvalidImage: `data` is no whole PNG, JPEG, WebP or GIF, is larger than 50 megapixels or
            20,000 pixels a side, or too dear to decode; `path` names the field.
        DeadlineExceeded: it was decoded apart and is not wanted any more.
        Overloaded: there is too little memory, or the system refuses what decoding needs.
    """
    size = read_size(data, path)
    kind = containers.kind_of(data)
    try:
        if kind == "JPEG":
            _check_scans(data, size)
        container = containers.read(data)
        apart = _apart.get()
        if apart is not None and work_of(data) > APART_WORK:
            return apart.pool.decode(container, bare=bare, wanted=apart.wanted)
        image = open_picture(container)
        _check_stated(image.size, size)
        return plain_pixels_of(image) if bare else pixels_of(image, container.orientation)
    except BrokenPicture as error:
        raise InvalidImage(path, str(error)) from None
    except MmeshError:
        raise
    except MemoryError as error:
        raise Overloaded("there is too little memory to decode a picture") from error
    except Exception as error:  # Decoders meet hostile bytes with errors of many types.
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
            raise Overloaded(f"the system refuses to decode a picture: {error}") from error
        raise InvalidImage(path, f"is a broken {kind} file: {error}") from error


def read_size(data: bytes, path: str) -> Size:
    """Return width and height as the header at the start of `data` states them.

    Raises:
        InvalidImage: as `decode` does, as far as the header tells.
    """
    try:
        size = containers.size_of(data)
        if size is None:
            kind = containers.kind_of(data)
            raise BrokenPicture(f"is a broken {kind} file: its header ends early")
        containers.check_size(size)
    except BrokenPicture as error:
        raise InvalidImage(path, str(error)) from None
    return size


def work_of(data: bytes) -> int:
    """Return about how many pixels are gone over to decode the picture; 0 if it is none.

    It takes very little time; where that does not tell, the most is assumed.
    """
    try:
        size = containers.soon_size_of(data)
        if size is None:
            return containers.MAX_PIXELS
        return min(size[0] * size[1], containers.MAX_PIXELS) * containers.passes_of(data)
    except BrokenPicture:
        return 0


def work_of_content(content: Content) -> int:
    """Return the work of all pictures of a content."""
    return sum(work_of(image.data) for image in content.images)


def _check_stated(found: Size, stated: Size) -> None:
    """Refuse a picture that is larger than the size by which it was admitted."""
    if found[0] > stated[0] or found[1] > stated[1]:
        many = f"is {found[0]} x {found[1]} pixels, though its header states"
        raise BrokenPicture(f"{many} {stated[0]} x {stated[1]}; save it anew")


def _check_scans(data: bytes, size: Size) -> None:
    """Refuse a JPEG of so many scans that it would be too dear to decode."""
    pixels, scans = size[0] * size[1], data.count(jpeg.SCAN)
    if scans <= jpeg.FEW_SCANS and scans * pixels <= MAX_SCANNED_PIXELS:
        return
    scans = jpeg.count_scans(data)
    if scans > jpeg.MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        count = f"over {jpeg.MAX_SCANS}" if scans > jpeg.MAX_SCANS else str(scans)
        many = f"has {count} scans of {size[0]} x {size[1]} pixels"
        raise BrokenPicture(f"{many}, too dear to decode; save it as a baseline JPEG")
