"""Rows of the log, as the parts of the index hand them to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from mmesh.candidates import Candidate
from mmesh.collections import CollectionSettings
from mmesh.content import Attributes, AttributeValue, Content, Image, Modality, Part
from mmesh.vectors import FloatMatrix
from services.index.store.blobs import Blobs


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

    @property
    def token(self) -> str:
        """Names the newest write."""
        return f"{self.epoch}:{self.seq}"


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


def parts_to_json(content: Content, blobs: Blobs) -> str:
    """Store the pictures of `content` and return its parts as JSON."""

    def part_json(part: Part) -> dict[str, str]:
        if isinstance(part, str):
            return {"text": part}
        return {"image": blobs.put(part.data), "media_type": part.media_type}

    return json.dumps([part_json(part) for part in content.parts], ensure_ascii=False)


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
    return json.dumps(dict(attributes), ensure_ascii=False, sort_keys=True)


def attributes_from_json(text: str) -> dict[str, AttributeValue]:
    """Return the attributes of `attributes_to_json`."""
    if not text:
        return {}
    values = json.loads(text)
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def candidate_of(stored: StoredCandidate, blobs: Blobs | None) -> Candidate:
    """Return a candidate as users know it."""
    content = parts_from_json(stored.parts, blobs)
    return Candidate(stored.id, content, attributes_from_json(stored.attributes))
