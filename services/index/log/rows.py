"""Rows of the log, as the parts of the index hand them to each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmesh.candidates import Candidate
from mmesh.collections import CollectionSettings
from mmesh.content import Attributes, AttributeValue, Content, Image, Modality, Part
from mmesh.errors import DataLoss
from mmesh.values.timestamps import from_micros, micros_of
from mmesh.values.tokens import Token
from mmesh.vectors import FloatMatrix
from services.index.point import Point
from services.index.segments.columns import MICROS
from services.index.store.blobs import Blobs

_COPY = re.compile(r'("image": "[0-9a-f]{64})\.[0-9a-z]+')
"""The number of a copy in JSON; within a text, quotes are escaped."""


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A collection as the log has it."""

    key: int
    """Its number in the log's tables."""
    name: str
    epoch: str
    """Tells it from every other collection that ever had its name."""
    seq: int
    """Number of its newest write."""
    purged: int
    """Deletions up to this sequence may be gone from the log: whoever has applied less of it must
    begin anew."""
    dim: int
    model_fingerprint: str
    attribute_types: Mapping[str, str]
    settings: CollectionSettings
    counts: Mapping[Modality, int]
    """Candidates by modality."""
    create_time: datetime
    aliases: tuple[str, ...] = ()
    stamp: str = ""
    """Of its newest commit; empty before the first."""

    @property
    def head(self) -> Point:
        """The newest write."""
        return Point(self.seq, self.stamp)

    @property
    def token(self) -> str:
        """Names the newest write."""
        return str(Token(self.epoch, self.seq, self.stamp))


@dataclass(frozen=True, slots=True)
class Rows:
    """The newest states of n candidates, in order of sequence, as columns; no id is there twice."""

    ids: Sequence[str]
    modalities: Sequence[Modality]
    attributes: Sequence[str]
    """JSON of `attributes_to_json`; empty without any and for deleted candidates."""
    seqs: NDArray[np.int64]
    """(n,), rising."""
    deleted: NDArray[np.bool_]
    """(n,); deleted candidates have rows of zeros in `vectors`."""
    vectors: FloatMatrix
    """Unit rows (n, dim)."""
    commits: Sequence[Point] = ()
    """The newest commits that made them, and others of the time, in order."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class NewCandidate:
    """A candidate to be written: its parts as JSON that names pictures by hash."""

    id: str
    slot: int
    modality: Modality
    attributes: str
    parts: str
    vector: bytes = field(repr=False)
    """Unit row in little-endian float32."""


@dataclass(frozen=True, slots=True)
class StoredCandidate:
    """A candidate as the log has it, for those who read it by id."""

    id: str
    parts: str
    attributes: str
    seq: int
    vector: bytes = field(repr=False, default=b"")
    """As in `NewCandidate`; empty unless asked for."""


class Page(NamedTuple):
    """Candidates that follow each other by id."""

    rows: list[StoredCandidate]
    is_last: bool
    """Whether no more follow."""


def parts_to_json(content: Content, blobs: Blobs) -> str:
    """Store the pictures of `content` and return its parts as JSON."""

    def part_json(part: Part) -> dict[str, str]:
        if isinstance(part, str):
            return {"text": part}
        return {"image": blobs.put(part.data), "media_type": part.media_type}

    return json.dumps([part_json(part) for part in content.parts], ensure_ascii=False)


def same_parts(parts: str) -> str:
    """Return the JSON of `parts_to_json` as it is for equal content, whatever copies it names."""
    return _COPY.sub(r"\1", parts)


def pictures_of(parts: str) -> list[str]:
    """Return the names of the pictures in the JSON of `parts_to_json`."""
    return [entry["image"] for entry in json.loads(parts) if "image" in entry]


def parts_from_json(text: str, blobs: Blobs | None) -> Content:
    """Return the content; pictures are empty when `blobs` is None."""

    def part_of(entry: dict[str, str]) -> Part:
        if "text" in entry:
            return entry["text"]
        return Image(blobs.get(entry["image"]) if blobs else b"", entry["media_type"])

    return Content(tuple(part_of(entry) for entry in json.loads(text)))


def attributes_to_json(attributes: Attributes) -> str:
    """Return attributes as JSON, by name; floats keep their point, so types survive."""
    if not attributes:
        return ""
    return json.dumps(dict(attributes), ensure_ascii=False, sort_keys=True, default=_moment_json)


def _moment_json(value: date) -> dict[str, int]:
    return {MICROS: micros_of(value)}


def attributes_from_json(text: str) -> dict[str, AttributeValue]:
    """Return the attributes of `attributes_to_json`."""
    if not text:
        return {}
    values = json.loads(text)
    return {name: _value_of(value) for name, value in values.items()}


def _value_of(value: Any) -> AttributeValue:
    if isinstance(value, list):
        return tuple(value)
    single: AttributeValue = from_micros(value[MICROS]) if isinstance(value, dict) else value
    return single


def candidate_of(stored: StoredCandidate, blobs: Blobs | None) -> Candidate:
    """Return a candidate as users know it; a picture that is lost is its `problem`."""
    reading = _Forgiving(blobs) if blobs else None
    content = parts_from_json(stored.parts, reading)
    loss = reading.loss if reading else None
    return Candidate(stored.id, content, attributes_from_json(stored.attributes), loss)


class _Forgiving:
    """Blobs, where those that are lost are empty."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.loss: DataLoss | None = None
        """The first."""

    def put(self, data: bytes) -> str:
        return self._blobs.put(data)

    def get(self, name: str) -> bytes:
        try:
            return self._blobs.get(name)
        except DataLoss as loss:
            self.loss = self.loss or loss
            return b""
