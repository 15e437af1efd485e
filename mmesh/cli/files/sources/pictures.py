"""Pictures of files: told by their bytes, brought into a format that the mesh takes, described."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.content import MAX_IMAGE_BYTES, Attributes, AttributeValue, Image
from mmesh.values.timestamps import to_utc

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

TAKEN = frozenset({"JPEG", "PNG", "WebP", "GIF"})
"""Formats that the mesh takes as they are."""
INSTALL = "pip install 'mmesh[pictures]'"
SUFFIXES = {
    ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG",
    ".jfif": "JPEG", ".jif": "JPEG", ".pjpeg": "JPEG", ".pjp": "JPEG", ".mpo": "JPEG",
    ".webp": "WebP", ".gif": "GIF",
    ".bmp": "BMP", ".dib": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF",
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000",
}  # fmt: skip
"""Formats of pictures by the end of a file's name."""
HEAD = 32
"""Bytes by which a format is told."""
MAX_FILE_BYTES = 256 << 20
"""Of a file that is read: of formats that become others, it may be larger than what is sent."""
_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
)  # fmt: skip
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"
)
_LOSSY = {"AVIF", "HEIC", "JPEG 2000"}
_QUALITY = 95
_TAKEN_AT, _ZONE, _EXIF_FOLDER, _ORIENTATION, _SIDEWAYS = 0x9003, 0x9011, 0x8769, 0x0112, 5
_EXIF_TIME = re.compile(r"(\d{4}):(\d\d):(\d\d)[ T](\d\d):(\d\d):(\d\d)")


class NotInstalled(ValueError):
    """What reads a format is not installed."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that the mesh takes, and what its header says."""

    image: Image
    facts: Attributes
    """`width` and `height` as it is shown, and `taken`, as far as they are known."""


def format_of(head: bytes) -> str:
    """Return the format of a picture that begins like this; empty for none that is known."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        found = [_BRANDS[b] for b in (head[8:12], head[16:20], head[20:24]) if b in _BRANDS]
        return "AVIF" if "AVIF" in found else (found or [""])[0]
    return next((name for beginning, name in _BEGINNINGS if head.startswith(beginning)), "")


def what_is_missing(name: str) -> str:
    """Return what must be installed for pictures of a format; empty when nothing is missing."""
    if name in TAKEN or not name:
        return ""
    if importlib.util.find_spec("PIL") is None:
        return f"{name} needs {INSTALL}"
    if name == "HEIC" and not _knows_heic():
        return f"{name} needs {INSTALL}"
    if name == "AVIF":
        from PIL import features

        return "" if features.check("avif") else f"{name} needs a newer Pillow: {INSTALL}"
    return ""


def image_of(data: bytes, name: str, notes: Notes) -> Image:
    """Return a picture in a format that the mesh takes.

    Raises:
        NotInstalled: what reads its format is not installed.
        ValueError: it is broken.
    """
    return picture_of(data, name, notes, facts=False).image


def picture_of(data: bytes, name: str, notes: Notes, *, facts: bool = True) -> Picture:
    """Return a picture in a format that the mesh takes, and what its header says.

    Raises:
        NotInstalled, ValueError: see `image_of`.
    """
    found = format_of(data[:HEAD])
    if found in TAKEN or not found:
        described = _described(data) if found and facts else {}
        return Picture(Image(data), described)
    if missing := what_is_missing(found):
        raise NotInstalled(missing)
    return _converted(data, found, name, notes)


def _described(data: bytes) -> Attributes:
    """Return the facts of a header; none where it cannot be read, which the mesh will say."""
    if importlib.util.find_spec("PIL") is None:
        return {}
    try:
        with _opened(data) as picture:
            return _facts(picture)
    except Exception:  # a broken header has as many exceptions as formats
        return {}


def _facts(picture: PillowImage) -> dict[str, AttributeValue]:
    exif = picture.getexif()
    width, height = picture.size
    if exif.get(_ORIENTATION, 1) >= _SIDEWAYS:
        width, height = height, width
    facts: dict[str, AttributeValue] = {"width": width, "height": height}
    details = exif.get_ifd(_EXIF_FOLDER)
    taken = _moment(str(details.get(_TAKEN_AT, "")), str(details.get(_ZONE, "")))
    return facts | ({"taken": taken} if taken else {})


def _moment(taken: str, zone: str) -> datetime | None:
    """Return a time of EXIF; None when it is none. Without a zone it is UTC."""
    found = _EXIF_TIME.match(taken)
    if found is None:
        return None
    year, month, day, hour, minute, second = found.groups()
    for offset in (zone.strip(), ""):
        text = f"{year}-{month}-{day}T{hour}:{minute}:{second}{offset}"
        try:
            return to_utc(datetime.fromisoformat(text))
        except ValueError:
            continue
    return None


@contextmanager
def _opened(data: bytes) -> Iterator[PillowImage]:
    from PIL import Image as Pillow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF, and about size, which the mesh judges
        with Pillow.open(io.BytesIO(data)) as picture:
            yield picture


def _converted(data: bytes, found: str, name: str, notes: Notes) -> Picture:
    from PIL import ImageOps

    try:
        with _opened(data) as picture:
            facts = _facts(picture)
            if getattr(picture, "n_frames", 1) > 1:
                notes.add(Topic.CONVERTED, f"{found}: first of several pages", name)
            upright = _in_eight_bits(ImageOps.exif_transpose(picture))
            facts["width"], facts["height"] = upright.size  # Pillow turns some when it opens them
            image = _saved(upright, picture.info.get("icc_profile"), lossy=found in _LOSSY)
    except Exception as error:  # as many as formats
        raise ValueError(f"is a broken {found} file: {error or type(error).__name__}") from None
    notes.add(
        Topic.CONVERTED, f"{found} to {image.media_type.removeprefix('image/').upper()}", name
    )
    return Picture(image, facts)


def _in_eight_bits(picture: PillowImage) -> PillowImage:
    """Return a picture in RGB, RGBA or grey of 8 bits."""
    if picture.mode.startswith("I;16"):
        return picture.point(lambda value: value * (1 / 256)).convert("L")
    if picture.mode == "F":
        picture = _finite(picture)
    if picture.mode in ("I", "F"):
        low, high = picture.getextrema()
        scale = 255 / ((high - low) or 1)  # type: ignore[operator]
        return picture.point(lambda value: value * scale - low * scale).convert("L")  # type: ignore[operator]
    if picture.mode in ("RGB", "RGBA", "L"):
        return picture
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    return picture.convert("RGBA" if has_alpha else "RGB")


def _finite(picture: PillowImage) -> PillowImage:
    """Return a picture of floats in which infinity is the brightest, and NaN the darkest."""
    import numpy as np
    from PIL import Image as Pillow

    pixels = np.asarray(picture)
    finite = np.isfinite(pixels)
    if finite.all():
        return picture
    if not finite.any():
        raise ValueError("it has no pixel that is a number")
    low, high = pixels[finite].min(), pixels[finite].max()
    return Pillow.fromarray(np.nan_to_num(pixels, nan=low, posinf=high, neginf=low))


def _saved(picture: PillowImage, profile: bytes | None, *, lossy: bool) -> Image:
    """Return a picture as PNG, or as JPEG when it was lossy before or is too large."""
    profile = profile if picture.mode.startswith("RGB") else None
    out = io.BytesIO()
    if not lossy or picture.mode == "RGBA":
        picture.save(out, "PNG", icc_profile=profile)
        if out.tell() <= MAX_IMAGE_BYTES:
            return Image(out.getvalue(), "image/png")
        out = io.BytesIO()
    flat = picture.convert("RGB") if picture.mode == "RGBA" else picture
    flat.save(out, "JPEG", quality=_QUALITY, subsampling=0, icc_profile=profile)
    return Image(out.getvalue(), "image/jpeg")


@cache
def _knows_heic() -> bool:
    """Tell whether Pillow reads HEIC, by pi-heif or by pillow-heif, which is larger."""
    for name in ("pi_heif", "pillow_heif"):
        try:
            importlib.import_module(name).register_heif_opener()
        except ImportError:
            continue
        return True
    return False
