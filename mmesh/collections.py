"""Collections: named sets of candidates that share one model, and their settings."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, TypedDict

from mmesh.candidates import MAX_ATTRIBUTES, Candidate
from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.filters import MAX_DEPTH
from mmesh.search import MAX_LIMIT

MAX_FACTORY_BYTES = 256


@dataclass(frozen=True, slots=True)
class CollectionLimits:
    """Quotas of a collection; 0 means the default. See `CollectionLimits` in collection.proto."""

    max_candidates: int = 0
    max_candidate_bytes: int = 0
    max_attributes: int = 0
    max_filter_depth: int = 0
    max_limit: int = 0


def check_within(candidate: Candidate, limits: CollectionLimits, path: str) -> None:
    """Raise `InvalidField`, naming the part under `path`, for what is over a collection's limit."""
    count = len(candidate.attributes)
    if limits.max_attributes and count > limits.max_attributes:
        problem = f"has {count} entries; this collection allows {limits.max_attributes}"
        raise InvalidField(f"{path}.attributes", problem)
    if limits.max_candidate_bytes and (size := _size(candidate)) > limits.max_candidate_bytes:
        problem = f"has {size} bytes; this collection allows {limits.max_candidate_bytes}"
        raise InvalidField(path, problem)


def _size(candidate: Candidate) -> int:
    """Return the bytes of id, parts and attributes."""
    content = sum(
        len(part.encode()) if isinstance(part, str) else len(part.data)
        for part in candidate.content.parts
    )
    attributes = sum(
        len(name) + sum(len(str(v)) for v in (value if isinstance(value, tuple) else (value,)))
        for name, value in candidate.attributes.items()
    )
    return len(candidate.id.encode()) + content + attributes


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """How a collection is indexed and what it may hold; see `collection.proto`."""

    index_factory: str = ""
    recall_target: float = 0.0
    limits: CollectionLimits = field(default_factory=CollectionLimits)
    mirror: str = ""
    read_only: bool = False


class SettingsChange(TypedDict, total=False):
    """A partial update of a collection's settings: what is left out stays as it is.

    The limits are here by their own names; 0, "" and False set a setting back to its default.
    """

    index_factory: str
    recall_target: float
    mirror: str
    read_only: bool
    max_candidates: int
    max_candidate_bytes: int
    max_attributes: int
    max_filter_depth: int
    max_limit: int


LIMITS = tuple(limit.name for limit in fields(CollectionLimits))


def with_changes(settings: CollectionSettings, change: SettingsChange) -> CollectionSettings:
    """Return the settings with the new values in their places."""
    values: dict[str, Any] = {**change}
    limits = {name: values.pop(name) for name in LIMITS if name in values}
    return replace(settings, **values, limits=replace(settings.limits, **limits))


def check_change(change: SettingsChange) -> None:
    """Raise `InvalidField` unless all new values are within bounds; see `check_settings`."""
    check_settings(with_changes(CollectionSettings(), change))


def check_settings(settings: CollectionSettings, path: str = "settings") -> None:
    """Raise `InvalidField`, naming the setting under `path`, unless all are within bounds.

    Whether `index_factory` can be built is for the index to say.
    """
    factory = settings.index_factory
    if len(factory.encode()) > MAX_FACTORY_BYTES or (factory and not factory.isprintable()):
        problem = f"must be at most {MAX_FACTORY_BYTES} bytes that can be printed"
        raise InvalidField(f"{path}.index_factory", problem)
    recall = settings.recall_target
    if recall and not 0.5 <= recall <= 1:  # also refuses NaN
        raise InvalidField(f"{path}.recall_target", f"is {recall}; 0, or 0.5 to 1, is allowed")
    for name, most in _GREATEST.items():
        value = getattr(settings.limits, name)
        if not 0 <= value <= most:
            problem = f"is {value}; 0 to {most} are allowed"
            raise InvalidField(f"{path}.limits.{name}", problem)


_GREATEST = {
    "max_candidates": 2**63 - 1,
    "max_candidate_bytes": 2**63 - 1,
    "max_attributes": MAX_ATTRIBUTES,
    "max_filter_depth": MAX_DEPTH,
    "max_limit": MAX_LIMIT,
}


class AttributeType(enum.Enum):
    """Types of attributes; see `AttributeType` in filter.proto."""

    STRING = "string"
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    STRING_LIST = "string_list"
    TIMESTAMP = "timestamp"


@dataclass(frozen=True, slots=True)
class AttributeSummary:
    """An attribute that candidates of a collection have."""

    name: str
    type: AttributeType | None
    """None for a type that this release does not know."""
    count: int
    """How many candidates have it."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of candidates that share one model."""

    name: str
    dim: int
    model_fingerprint: str
    candidates: Mapping[Modality, int]
    shards: int
    create_time: datetime
    token: str
    settings: CollectionSettings = field(default_factory=CollectionSettings)
    aliases: tuple[str, ...] = ()
    attributes: tuple[AttributeSummary, ...] = ()
    """By name; only when asked for."""
