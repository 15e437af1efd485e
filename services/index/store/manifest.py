"""The manifest of a snapshot: what it holds, as JSON that carries its own checksum."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from mmesh.content import Modality
from services.index.point import Point
from services.index.slots import SLOTS

FORMAT = 1
MAX_BYTES = 16 << 20
"""Of a manifest; one of 10,000 segments has 5 MB."""
MAX_NUMBER = 10**8 - 1
_LARGE = 2**63 - 1
_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

Damage = Literal["manifest", "mismatch", "format", "faiss", "missing", "size", "checksum"]


class SnapshotDamaged(Exception):
    """A snapshot cannot be used.

    Attributes:
        reason: what is wrong with it.
        file: the file of it that shows the damage.
    """

    def __init__(self, reason: Damage, file: str) -> None:
        super().__init__(f"{reason}: {file}")
        self.reason = reason
        self.file = file


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a snapshot."""

    name: str
    """In its segment's folder."""
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment of a snapshot."""

    modality: Modality
    alive: FileEntry
    """The bits of `Segment.alive_bits`."""
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot holds."""

    number: int
    """Of this collection and these slots; the newest has the highest."""
    collection: str
    epoch: str
    slots: range
    dim: int
    model_fingerprint: str
    seq: int
    """The sequence of the log that it reflects."""
    faiss: str
    """Version that wrote the segments."""
    create_time: datetime
    writer: str
    """Random, so that no two writers' manifests are equal."""
    segments: tuple[SegmentEntry, ...]
    stamp: str = ""
    """Of the commit up to which it reflects the log; empty where an earlier release wrote it."""

    @property
    def at(self) -> Point:
        """What it reflects: all writes of its history up to here."""
        return Point(self.seq, self.stamp)

    def files(self) -> Iterator[FileEntry]:
        """Yield every file, the bits of living rows too."""
        for segment in self.segments:
            yield segment.alive
            yield from segment.files

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files())


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as canonical JSON with its checksum."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "number": manifest.number,
        "collection": manifest.collection,
        "epoch": manifest.epoch,
        "slots": [manifest.slots[0], manifest.slots[-1]],
        "dim": manifest.dim,
        "model_fingerprint": manifest.model_fingerprint,
        "seq": manifest.seq,
        "stamp": manifest.stamp,
        "faiss": manifest.faiss,
        "create_time": manifest.create_time.isoformat(),
        "writer": manifest.writer,
        "segments": [_segment_to_json(segment) for segment in manifest.segments],
    }
    return _canonical(body | {"sha256": _checksum(body)})


def decode(data: bytes) -> Manifest:
    """Return the manifest that `encode` made.

    Raises:
        SnapshotDamaged: a byte of it is another, or it is of a format that is not known.
    """
    try:
        body = json.loads(data)
        digest = body.pop("sha256")
        intact = digest == _checksum(body) and data == _canonical(body | {"sha256": digest})
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise SnapshotDamaged("manifest", "manifest") from None
    if not intact:
        raise SnapshotDamaged("manifest", "manifest")
    if body.get("format") != FORMAT:
        raise SnapshotDamaged("format", "manifest")
    try:
        return _manifest_of(body)
    except (ValueError, TypeError, KeyError):
        raise SnapshotDamaged("manifest", "manifest") from None


def is_file_name(name: str) -> bool:
    """Return whether a file of a segment may have this name."""
    return _NAME.fullmatch(name) is not None


def _segment_to_json(segment: SegmentEntry) -> dict[str, Any]:
    return {
        "modality": segment.modality.value,
        "alive": _file_to_json(segment.alive),
        "files": [_file_to_json(file) for file in segment.files],
    }


def _file_to_json(file: FileEntry) -> dict[str, Any]:
    return {"name": file.name, "sha256": file.sha256, "size": file.size}


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _manifest_of(body: Mapping[str, Any]) -> Manifest:
    first, last = body["slots"]
    return Manifest(
        number=_whole(body["number"], 1, MAX_NUMBER),
        collection=_text(body["collection"]),
        epoch=_text(body["epoch"]),
        slots=range(_whole(first, 0, SLOTS - 1), _whole(last, first, SLOTS - 1) + 1),
        dim=_whole(body["dim"], 1, 2**31),
        model_fingerprint=_text(body["model_fingerprint"]),
        seq=_whole(body["seq"], 0, _LARGE),
        faiss=_text(body["faiss"]),
        create_time=datetime.fromisoformat(body["create_time"]),
        writer=_text(body["writer"]),
        segments=tuple(_segment_of(segment) for segment in body["segments"]),
        stamp=_text(body.get("stamp", "")),
    )


def _segment_of(body: Mapping[str, Any]) -> SegmentEntry:
    files = tuple(_file_of(file) for file in body["files"])
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file is named twice")
    return SegmentEntry(Modality(body["modality"]), _file_of(body["alive"]), files)


def _file_of(body: Mapping[str, Any]) -> FileEntry:
    name, digest = _text(body["name"]), _text(body["sha256"])
    if not is_file_name(name) or not _DIGEST.fullmatch(digest):
        raise ValueError("not the name of a file, or not a hash")
    return FileEntry(name, digest, _whole(body["size"], 0, _LARGE))


def _whole(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"not a whole number from {low} to {high}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
