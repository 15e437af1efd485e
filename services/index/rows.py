"""Rows of the log, as the parts of the index hand them to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from mmesh.candidates import Candidate
from mmesh.content import Attributes, AttributeValue, Content, Image, Modality, Part
from services.index.blobs import LocalBlobs


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A collection as the log has it; `seq` is the number of its newest write."""

    name: str
    epoch: str
    seq: int
    dim: int
    model_fingerprint: str
    attribute_types: Mapping[str, str]
    create_time: datetime

    @property
    def token(self) -> str:
        """Names the newest write."""
        return f"{self.epoch}:{self.seq}"


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """The newest state of a candidate; without vector when it is deleted."""

    id: str
    slot: int
    modality: Modality
    attributes: Attributes
    seq: int
    deleted: bool
    vector: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewCandidate:
    """A candidate to be written: its parts as JSON that names pictures by hash."""

    id: str
    slot: int
    modality: Modality
    attributes: str
    parts: str
    vector: bytes = field(repr=False)


def parts_to_json(content: Content, blobs: LocalBlobs) -> str:
    """Store the pictures of `content` and return its parts as JSON."""

    def part_json(part: Part) -> dict[str, str]:
        if isinstance(part, str):
            return {"text": part}
        return {"image": blobs.put(part.data), "media_type": part.media_type}

    return json.dumps([part_json(part) for part in content.parts], ensure_ascii=False)


def parts_from_json(text: str, blobs: LocalBlobs | None) -> Content:
    """Return the content; pictures are empty when `blobs` is None."""

    def part_of(entry: dict[str, str]) -> Part:
        if "text" in entry:
            return entry["text"]
        return Image(blobs.get(entry["image"]) if blobs else b"", entry["media_type"])

    return Content(tuple(part_of(entry) for entry in json.loads(text)))


def attributes_to_json(attributes: Attributes) -> str:
    """Return attributes as JSON; floats keep their point, so types survive."""
    return json.dumps(dict(attributes), ensure_ascii=False) if attributes else ""


def attributes_from_json(text: str) -> dict[str, AttributeValue]:
    """Return the attributes of `attributes_to_json`."""
    if not text:
        return {}
    values = json.loads(text)
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def candidate_of(
    candidate_id: str, parts: str, attributes: str, blobs: LocalBlobs | None
) -> Candidate:
    """Return a candidate as users know it."""
    return Candidate(candidate_id, parts_from_json(parts, blobs), attributes_from_json(attributes))
