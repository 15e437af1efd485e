"""What can be encoded and found: content made of texts and pictures, in plain Python.

Nothing here knows protobuf or the network, so engines and clients share it.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmesh.errors import InvalidField

MAX_PARTS = 16
MAX_TEXT_BYTES = 1 << 20
MAX_IMAGE_BYTES = 20 << 20
MAX_ID_BYTES = 512
MAX_INSTRUCTION_BYTES = 4096

AttributeValue = str | int | float | bool | tuple[str, ...]
Attributes = Mapping[str, AttributeValue]


class Modality(enum.Enum):
    """What a query or candidate is made of."""

    TEXT = "text"
    IMAGE = "image"
    IMAGE_TEXT = "image_text"


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
    def of(cls, *parts: Part | bytes) -> Content:
        """Return content of `parts`, taking bare bytes for encoded pictures."""
        return cls(tuple(Image(p) if isinstance(p, bytes) else p for p in parts))

    @property
    def texts(self) -> tuple[str, ...]:
        """The text parts, in order."""
        return tuple(p for p in self.parts if isinstance(p, str))

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
        sha = hashlib.sha256()
        for part in self.parts:
            kind, data = (b"t", part.encode()) if isinstance(part, str) else (b"i", part.data)
            sha.update(kind + len(data).to_bytes(8, "little"))
            sha.update(data)
        return sha.digest()


def check_content(content: Content, path: str = "content") -> None:
    """Raise `InvalidField`, naming the part, unless `content` is within the limits."""
    if not 1 <= len(content.parts) <= MAX_PARTS:
        raise InvalidField(
            f"{path}.parts", f"has {len(content.parts)} parts; 1 to {MAX_PARTS} are allowed"
        )
    for number, part in enumerate(content.parts):
        where = f"{path}.parts[{number}]"
        if isinstance(part, str):
            check_text(part, f"{where}.text")
        else:
            check_image_bytes(part.data, f"{where}.image.data")


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


def check_id(candidate_id: str, path: str) -> None:
    """Raise `InvalidField` unless the id is 1 to 512 bytes of printable Unicode."""
    if not candidate_id:
        raise InvalidField(path, "is empty; every candidate needs an id")
    if not candidate_id.isprintable():
        raise InvalidField(path, "holds a character that cannot be printed")
    size = len(candidate_id.encode())
    if size > MAX_ID_BYTES:
        raise InvalidField(path, f"is {size} bytes; at most {MAX_ID_BYTES} are allowed")


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
