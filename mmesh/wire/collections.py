"""Collections and their settings to protobuf and back; changes of settings as field masks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from typing import Any, cast

from google.protobuf.field_mask_pb2 import FieldMask

from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.filter.v1 import filter_pb2
from mmesh.collections import (
    LIMITS,
    AttributeSummary,
    AttributeType,
    Collection,
    CollectionLimits,
    CollectionSettings,
    SettingsChange,
    with_changes,
)
from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.wire.content import modality_from_pb, modality_to_pb

_TYPES: dict[AttributeType | None, filter_pb2.AttributeType.ValueType] = {
    None: filter_pb2.ATTRIBUTE_TYPE_UNSPECIFIED,
    AttributeType.STRING: filter_pb2.ATTRIBUTE_TYPE_STRING,
    AttributeType.INTEGER: filter_pb2.ATTRIBUTE_TYPE_INTEGER,
    AttributeType.FLOAT: filter_pb2.ATTRIBUTE_TYPE_FLOAT,
    AttributeType.BOOLEAN: filter_pb2.ATTRIBUTE_TYPE_BOOLEAN,
    AttributeType.STRING_LIST: filter_pb2.ATTRIBUTE_TYPE_STRING_LIST,
    AttributeType.TIMESTAMP: filter_pb2.ATTRIBUTE_TYPE_TIMESTAMP,
}
_TYPE_OF = {number: kind for kind, number in _TYPES.items()}
_LIMITS, _EVERYTHING = "limits", "*"
_PATH_OF = {
    name: f"{_LIMITS}.{name}" if name in LIMITS else name for name in SettingsChange.__annotations__
}
"""Paths in a field mask by names of settings."""
_SETTING_OF = {path: name for name, path in _PATH_OF.items()}


def settings_to_pb(settings: CollectionSettings) -> collection_pb2.CollectionSettings:
    """Return the message of `settings`."""
    limits = settings.limits
    return collection_pb2.CollectionSettings(
        index_factory=settings.index_factory,
        recall_target=settings.recall_target,
        limits=collection_pb2.CollectionLimits(
            max_candidates=limits.max_candidates,
            max_candidate_bytes=limits.max_candidate_bytes,
            max_attributes=limits.max_attributes,
            max_filter_depth=limits.max_filter_depth,
            max_limit=limits.max_limit,
        ),
        mirror=settings.mirror,
        read_only=settings.read_only,
    )


def settings_from_pb(message: collection_pb2.CollectionSettings) -> CollectionSettings:
    """Return the settings of `message`; their bounds are checked by `check_settings`."""
    limits = message.limits
    return CollectionSettings(
        message.index_factory,
        message.recall_target,
        CollectionLimits(
            limits.max_candidates,
            limits.max_candidate_bytes,
            limits.max_attributes,
            limits.max_filter_depth,
            limits.max_limit,
        ),
        message.mirror,
        message.read_only,
    )


MAX_PATHS = 64
"""Of an update mask."""


def change_to_pb(change: SettingsChange) -> tuple[collection_pb2.CollectionSettings, FieldMask]:
    """Return the message that holds the new values, and the mask that names them."""
    settings = settings_to_pb(with_changes(CollectionSettings(), change))
    return settings, FieldMask(paths=[_PATH_OF[name] for name in change])


def change_from_pb(message: collection_pb2.CollectionSettings, mask: FieldMask) -> SettingsChange:
    """Return the change that a mask makes of `message`; bounds are checked by `check_change`.

    Raises:
        InvalidField: a path of the mask names no setting.
    """
    values = {path: _value_at(message, path) for path in _SETTING_OF}
    are_set = [path for path, value in values.items() if value]
    paths = list(_paths_of(mask, are_set)) if mask.paths else are_set
    return cast("SettingsChange", {_SETTING_OF[path]: values[path] for path in paths})


def _paths_of(mask: FieldMask, are_set: Iterable[str]) -> Iterable[str]:
    if len(mask.paths) > MAX_PATHS:
        raise InvalidField(
            "update_mask.paths", f"has {len(mask.paths)} entries; at most {MAX_PATHS}"
        )
    for number, path in enumerate(mask.paths):
        if path == _EVERYTHING:
            yield from _SETTING_OF
        elif path == _LIMITS:
            yield from (one for one in are_set if one.startswith(f"{_LIMITS}."))
        elif path in _SETTING_OF:
            yield path
        else:
            known = ", ".join(_SETTING_OF)
            problem = f"is {path[:80]!r}, which names no setting; these are {known}"
            raise InvalidField(f"update_mask.paths[{number}]", problem)


def _value_at(message: Any, path: str) -> Any:
    for name in path.split("."):
        message = getattr(message, name)
    return message


def collection_to_pb(collection: Collection) -> collection_pb2.Collection:
    """Return the message of `collection`."""
    message = collection_pb2.Collection(
        name=collection.name,
        dim=collection.dim,
        model_fingerprint=collection.model_fingerprint,
        candidates=[
            collection_pb2.ModalityCount(modality=modality_to_pb(modality), count=count)
            for modality, count in collection.candidates.items()
        ],
        shard_count=collection.shards,
        token=collection.token,
        settings=settings_to_pb(collection.settings),
        aliases=collection.aliases,
        attributes=[
            collection_pb2.AttributeSummary(name=one.name, type=_TYPES[one.type], count=one.count)
            for one in collection.attributes
        ],
    )
    message.create_time.FromDatetime(collection.create_time)
    return message


def collection_from_pb(message: collection_pb2.Collection) -> Collection:
    """Return the collection of `message`."""
    counts = {modality_from_pb(c.modality): c.count for c in message.candidates}
    return Collection(
        message.name,
        message.dim,
        message.model_fingerprint,
        {modality: counts.get(modality, 0) for modality in Modality},
        message.shard_count,
        message.create_time.ToDatetime(UTC),
        message.token,
        settings_from_pb(message.settings),
        tuple(message.aliases),
        tuple(AttributeSummary(a.name, _TYPE_OF.get(a.type), a.count) for a in message.attributes),
    )
