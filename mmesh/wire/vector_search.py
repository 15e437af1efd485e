"""Vector searches to protobuf and back."""

from __future__ import annotations

from mmesh import wire
from mmesh.api.index.v1 import index_pb2
from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.search import Consistency
from mmesh.vector_search import VectorSearch


def vector_search_to_pb(search: VectorSearch) -> index_pb2.SearchRequest:
    """Return the message of `search`."""
    return index_pb2.SearchRequest(
        collection=search.collection,
        queries=wire.vectors_to_pb(search.queries),
        model_fingerprint=search.model_fingerprint,
        modalities=[wire.modality_to_pb(modality) for modality in search.modalities],
        limit=search.limit,
        filter=wire.filter_to_pb(search.filter) if search.filter else None,
        consistency=wire.consistency_to_pb(search.consistency),
        token=search.token,
    )


def vector_search_from_pb(message: index_pb2.SearchRequest) -> VectorSearch:
    """Return the search of `message`; without modalities, of all; with a token, as fresh as it."""
    if len(message.modalities) > len(Modality):
        problem = f"has {len(message.modalities)} entries; at most {len(Modality)}"
        raise InvalidField("modalities", problem)
    given = [wire.modality_from_pb(value, "modalities") for value in message.modalities]
    default = Consistency.SESSION if message.token else Consistency.EVENTUAL
    return VectorSearch(
        message.collection,
        wire.vectors_from_pb(message.queries),
        message.model_fingerprint,
        tuple(modality for modality in given if modality) or tuple(Modality),
        message.limit,
        wire.filter_from_pb(message.filter) if message.HasField("filter") else None,
        wire.consistency_from_pb(message.consistency) or default,
        message.token,
    )
