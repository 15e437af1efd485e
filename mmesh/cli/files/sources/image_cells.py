"""What a cell `image` may hold: a path, bytes, base64, or the {bytes, path} of Hugging Face."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmesh.cli.files.sources.items import bytes_of, stamp_of
from mmesh.cli.files.sources.pictures import HEAD, MAX_FILE_BYTES, format_of
from mmesh.cli.files.sources.row_shape import kind_of
from mmesh.values.paths import why_not_read

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{1,15})://")
_DATA_URL = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_SHORTEST_BASE64 = 64


@dataclass(frozen=True, slots=True)
class ImageCell:
    """A picture of a row: its bytes, or the file that has them."""

    name: str
    data: bytes | None
    path: Path | None = None

    def stamp(self) -> bytes:
        """Return what changes when the picture does, without reading a file."""
        if self.path is None:
            return stamp_of(self.data or b"")
        try:
            found = self.path.stat()
        except OSError:
            return stamp_of("missing")
        return stamp_of(self.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def read(self) -> bytes:
        """Return the bytes of the picture.

        Raises:
            OSError: its file cannot be read.
            ValueError: it is no file, or a very large one.
        """
        if self.path is None:
            return self.data or b""
        if problem := why_not_read(self.path):  # reading it may never end
            raise ValueError(f"has an image that {problem}: {self.name[:80]}")
        return bytes_of(self.path, MAX_FILE_BYTES)


def image_cells(value: Any, folder: Path, *, allow_outside: bool) -> Iterator[ImageCell]:
    """Yield the pictures of a cell: none, one, or those of a list.

    Raises:
        ValueError: it holds none, or a file outside of `folder`, unless that is allowed.
    """
    match value:
        case None | "":
            return
        case bytes():
            yield ImageCell("image", value)
        case str():
            yield _of_text(value, folder, allow_outside)
        case list() | tuple():
            for one in value:
                yield from image_cells(one, folder, allow_outside=allow_outside)
        case Mapping():
            yield from _of_object(value, folder, allow_outside)
        case _:
            raise ValueError(f"has an image that is {kind_of(value)}; a path or bytes are due")


def _of_object(value: Mapping[str, Any], folder: Path, allow_outside: bool) -> Iterator[ImageCell]:
    if not {"bytes", "path"} & value.keys():
        keys = ", ".join(sorted(map(str, value)))
        raise ValueError(f"has an image that is an object of {keys}; bytes or path are due")
    data = value.get("bytes")
    if isinstance(data, str):
        data = _bytes_of(data)
        if data is None:
            raise ValueError("has an image whose bytes are not base64")
    if data is not None and not isinstance(data, bytes):
        raise ValueError(f"has an image whose bytes are {kind_of(data)}; base64 is due")
    if data is not None:
        yield ImageCell(str(value.get("path") or "image"), data)
    else:
        yield from image_cells(value.get("path"), folder, allow_outside=allow_outside)


def _of_text(value: str, folder: Path, allow_outside: bool) -> ImageCell:
    if _DATA_URL.match(value):
        data = _bytes_of(value.partition(",")[2]) if ";base64," in value[:200].lower() else None
        if data is None:
            raise ValueError("has an image that is a data URL of no base64")
        return ImageCell("image", data)
    if found := _URL.match(value):
        raise ValueError(
            f"has an image at a URL ({found[1]}://…), which is not fetched; save the pictures "
            "beside the file and give their paths"
        )
    data = _bytes_of(value) if len(value) >= _SHORTEST_BASE64 else None
    if data is not None and format_of(data[:HEAD]):
        return ImageCell("image", data)
    return ImageCell(value, None, _file_of(value, folder, allow_outside))


def _file_of(value: str, folder: Path, allow_outside: bool) -> Path:
    if "\0" in value:
        raise ValueError("has an image whose path holds a NUL character")
    path = folder / value
    if "\\" in value and not path.exists():  # as Windows writes it
        path = folder / value.replace("\\", "/")
    if not allow_outside and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"has an image outside of the file's folder ({value[:80]}); --allow-outside reads it"
        )
    return path


def _bytes_of(text: str) -> bytes | None:
    """Return what base64 stands for, of either alphabet; None when it is none."""
    plain = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
