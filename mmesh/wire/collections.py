"""Collections and their settings to protobuf and back."""

from __future__ import annotations

from datetime import UTC

from mmesh.api.collection.v1 import collection_pb2
from mmesh.collections import Collection, CollectionLimits, CollectionSettings
from mmesh.content import Modality
from mmesh.wire.content import modality_from_pb, modality_to_pb


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
    )


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
    )
