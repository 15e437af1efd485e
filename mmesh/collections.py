"""Collections: named sets of candidates that share one model, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, TypedDict

from mmesh.candidates import MAX_ATTRIBUTES
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


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """How a collection is indexed and what it may hold; see `collection.proto`."""

    index_factory: str = ""
    recall_target: float = 0.0
    limits: CollectionLimits = field(default_factory=CollectionLimits)
    mirror: str = ""


class SettingsChange(TypedDict, total=False):
    """A partial update of a collection's settings: what is left out stays as it is.

    The limits are here by their own names; 0 and "" set a setting back to its default.
    """

    index_factory: str
    recall_target: float
    mirror: str
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
