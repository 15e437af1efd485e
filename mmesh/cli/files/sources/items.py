"""What sources give: candidates to be, each with what tells whether it changed; and refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmesh.candidates import Candidate, Embedded
from mmesh.values.ids import id_of_path

_READER = 1
"""Raised when the same file gives other candidates than before, so that all are sent again."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row or file that gives no candidate, and why."""

    id: str
    reason: str
    hides: bool = True
    """What it would have given is not known, so others may only seem to be gone."""
    source: str = ""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """What is there and cannot be read for now, which is no refusal; if it is stored, it stays."""

    id: str
    source: str


@dataclass(frozen=True, slots=True)
class Item:
    """A candidate to be."""

    id: str
    stamp: bytes
    """Equal when it did not change; cheap, so it may differ although nothing did."""
    make: Callable[[], Candidate | Embedded]
    """Read all of it. Whatever this raises is a refusal of this candidate."""
    source: str = ""
    """The source that it comes from, for which it can be gone later."""


Given = Item | Unreadable | PassedOver
"""What a source gives."""


class FileEnded(Exception):
    """The rest of a file cannot be read."""


def stamp_of(*parts: object) -> bytes:
    """Return 16 bytes that are equal for equal parts (BLAKE2b)."""
    text = json.dumps([_READER, *parts], default=_plain, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def digest_of(made: Candidate | Embedded) -> bytes:
    """Return 16 bytes that are equal for equal content, attributes and vector."""
    candidate, vector = (made, b"") if isinstance(made, Candidate) else _parts_of(made)
    attributes = sorted(candidate.attributes.items())
    return stamp_of(candidate.content.digest().hex(), attributes, vector)


def item_of(made: Candidate | Embedded, source: str) -> Item:
    """Return the item of a candidate that is read already."""
    candidate = made if isinstance(made, Candidate) else made.candidate
    return Item(candidate.id, digest_of(made), lambda: made, source)


def _parts_of(embedded: Embedded) -> tuple[Candidate, bytes]:
    return embedded.candidate, embedded.vector.tobytes()


def source_name(path: Path) -> str:
    """Return what names a source in the journal."""
    return id_of_path(str(path.resolve()))


def bytes_of(path: Path, most: int) -> bytes:
    """Return what a file holds.

    Raises:
        ValueError: it holds more than `most` bytes, of which no more are read.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"is a file of over {most >> 20} MiB: {path.name}")
    return data


def reason_of(error: BaseException) -> str:
    """Return what an error says, in one line that is never empty and never long."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename else ""
        words = f"{error.strerror}{name}"
    else:
        words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _LONGEST_REASON else words[: _LONGEST_REASON - 1] + "…"


_LONGEST_REASON = 300


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    return f"{type(value).__name__}:{value!r}"
