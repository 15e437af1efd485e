"""What can be encoded and found: content made of texts and pictures, in plain Python.

Nothing here knows protobuf or the network, so engines and clients share it.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from datetime import date

from mmesh.errors import InvalidField

MAX_PARTS = 16
MAX_TEXT_BYTES = 1 << 20
MAX_IMAGE_BYTES = 20 << 20
MAX_INSTRUCTION_BYTES = 4096

AttributeValue = str | int | float | bool | date | tuple[str, ...]
"""Moments are read back as `datetime` in UTC, whatever kind of `date` was written."""
Attributes = Mapping[str, AttributeValue]


class Modality(enum.Enum):
    """What a query or candidate is made of."""

    TEXT = "text"
    IMAGE = "image"
    IMAGE_TEXT = "image_text"


WITH_IMAGE = frozenset((Modality.IMAGE, Modality.IMAGE_TEXT))
"""Content with a picture, whether it has a text as well or not; for `Search.target`."""
WITH_TEXT = frozenset((Modality.TEXT, Modality.IMAGE_TEXT))
"""Content with a text, whether it has a picture as well or not; for `Search.target`."""


class Role(enum.Enum):
    """The side of the search that content is embedded for."""

    QUERY = "query"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded picture: PNG, JPEG, WebP or GIF (its first frame) as bytes."""

    data: bytes = field(repr=False)
    media_type: str = ""


Part = str | Image


@dataclass(frozen=True, slots=True)
class Content:
    """1 to 16 parts in reading order; the modality follows from the parts."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, *parts: Part | bytes | os.PathLike[str]) -> Content:
        """Return content of `parts`; bytes are encoded pictures, and paths their files.

        Raises:
            InvalidField: a part is of another type, or a file cannot be read.
        """
        return cls(tuple(as_part(p, f"content.parts[{n}]") for n, p in enumerate(parts)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The text parts, in order."""
        return tuple(p for p in self.parts if isinstance(p, str))

    @property
    def size(self) -> int:
        """About how many bytes it takes in a message."""
        return sum(
            len(part.data)
            if isinstance(part, Image)
            else len(part.encode("utf-8", "surrogatepass"))
            for part in self.parts
        )

    @property
    def images(self) -> tuple[Image, ...]:
        """The picture parts, in order."""
        return tuple(p for p in self.parts if isinstance(p, Image))

    @property
    def text(self) -> str:
        """All text parts, joined by line breaks."""
        return "\n".join(self.texts)

    @property
    def modality(self) -> Modality:
        """`TEXT`, `IMAGE`, or `IMAGE_TEXT` when both kinds of part are there."""
        if not self.images:
            return Modality.TEXT
        return Modality.IMAGE_TEXT if self.texts else Modality.IMAGE

    def digest(self) -> bytes:
        """Return 32 bytes that are equal exactly for equal content (SHA-256)."""
        import hashlib

        sha = hashlib.sha256()
        for part in self.parts:
            kind, data = (b"t", part.encode()) if isinstance(part, str) else (b"i", part.data)
            sha.update(kind + len(data).to_bytes(8, "little"))
            sha.update(data)
        return sha.digest()


def as_part(given: Part | bytes | os.PathLike[str], path: str) -> Part:
    """Return a part; see `Content.of`. `path` names it in errors."""
    if isinstance(given, str):
        return str(given)
    if isinstance(given, Image):
        _check_media_type(given.media_type, f"{path}.image.media_type")
        return (
            given if isinstance(given.data, bytes) else _as_image(given.data, f"{path}.image.data")
        )
    return _as_image(given, path)


def _check_media_type(media_type: object, path: str) -> None:
    if not isinstance(media_type, str):
        raise InvalidField(path, f"is of type {type(media_type).__name__}; a str is due")
    try:
        media_type.encode()
    except UnicodeEncodeError:
        raise InvalidField(path, "holds a lone surrogate, which is not valid Unicode") from None


def _as_image(given: object, path: str) -> Image:
    if isinstance(given, bytes | bytearray | memoryview):
        return Image(bytes(given))
    if isinstance(given, os.PathLike):
        return Image(_bytes_of(given, path))
    problem = f"is of type {type(given).__name__}; a str, or a picture's bytes or path, is due"
    raise InvalidField(path, problem)


def _bytes_of(file: os.PathLike[str], path: str) -> bytes:
    """Read a picture, or as much of it as shows that it is too large."""
    try:
        with open(file, "rb") as opened:
            return opened.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        problem = f"names the file {os.fspath(file)!r}, which cannot be read: {error.strerror}"
        raise InvalidField(path, problem) from None


def check_content(content: Content, path: str = "content") -> None:
    """Raise `InvalidField`, naming the part, unless `content` is within the limits."""
    check_parts(content.parts, path, least=1)
    for number, part in enumerate(content.parts):
        where = f"{path}.parts[{number}]"
        if isinstance(part, str):
            check_text(part, f"{where}.text")
        else:
            check_image_bytes(part.data, f"{where}.image.data")


def check_parts(parts: Sized, path: str, least: int = 0) -> None:
    """Raise `InvalidField` for more parts than a content may have, or fewer than `least`."""
    if not least <= len(parts) <= MAX_PARTS:
        raise InvalidField(f"{path}.parts", f"has {len(parts)} parts; 1 to {MAX_PARTS} are allowed")


def check_text(text: str, path: str) -> None:
    """Raise `InvalidField` unless `text` is 1 byte to 1 MiB of valid Unicode without NUL."""
    if not text.strip():
        raise InvalidField(path, "is empty; leave the part out or give it words")
    if "\0" in text:
        raise InvalidField(path, "holds a NUL character; remove it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidField(path, "holds a lone surrogate, which is not valid Unicode") from None
    if size > MAX_TEXT_BYTES:
        raise InvalidField(path, f"is {size} bytes; at most {MAX_TEXT_BYTES} are allowed")


def check_image_bytes(data: bytes, path: str) -> None:
    """Raise `InvalidField` unless `data` has 1 byte to 20 MiB; pixels are checked when decoded."""
    if not data:
        raise InvalidField(path, "is empty; send the bytes of a PNG, JPEG, WebP or GIF file")
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidField(path, f"is {len(data)} bytes; at most {MAX_IMAGE_BYTES} are allowed")


def check_instruction(instruction: str, path: str = "instruction") -> None:
    """Raise `InvalidField` unless the instruction is at most 4096 bytes without NUL."""
    if "\0" in instruction:
        raise InvalidField(path, "holds a NUL character; remove it")
    try:
        size = len(instruction.encode())
    except UnicodeEncodeError:
        raise InvalidField(path, "holds a lone surrogate, which is not valid Unicode") from None
    if size > MAX_INSTRUCTION_BYTES:
        raise InvalidField(path, f"is {size} bytes; at most {MAX_INSTRUCTION_BYTES} are allowed")
