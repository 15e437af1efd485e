"""protobuf to engine calls and back, for collections and candidates."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

from mmesh import wire
from mmesh.api.index.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
)
from mmesh.api.vector.v1 import vector_pb2
from mmesh.candidates import Candidate, check_candidate
from mmesh.collections import check_change, check_settings
from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.serving.deadline import Context, Deadline
from mmesh.values.ids import check_id
from mmesh.vectors import MAX_DIM, unpack
from mmesh.wire import page_size_of
from mmesh.wire.encoding import built, candidate_bytes
from mmesh.wire.vector_search import vector_search_from_pb
from services.index.attribute_cache import AttributeCache
from services.index.config import IndexSettings
from services.index.description import SegmentState
from services.index.engine import IndexEngine, MirrorVectors
from services.index.log.rows import StoredCandidate
from services.index.search_stream import SearchStream
from services.index.view.view import Found

DEFAULT_DEADLINE_S, LONG_DEADLINE_S = 30.0, 3600.0
MAX_CANDIDATES = 1000
MAX_QUERIES, MOST_HITS_AT_ONCE = 1024, 2000
PAGE_BYTES = 16 << 20
"""Bytes of a page: gRPC copies a message on the event loop, a millisecond for each of its MiB."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class CollectionServicer(collection_service_pb2_grpc.CollectionServiceServicer):
    """Serves `mmesh.api.index.v1.CollectionService`."""

    def __init__(self, engine: IndexEngine) -> None:
        self._engine = engine

    async def CreateCollection(
        self, request: collection_service_pb2.CreateCollectionRequest, context: Context
    ) -> collection_service_pb2.CreateCollectionResponse:
        _check_name(request.name)
        if not 1 <= request.dim <= MAX_DIM:
            raise InvalidField("dim", f"is {request.dim}; 1 to {MAX_DIM} are allowed")
        if not 1 <= len(request.model_fingerprint.encode()) <= 512:
            raise InvalidField("model_fingerprint", "must have 1 to 512 bytes")
        _check_request_id(request.request_id)
        settings = wire.settings_from_pb(request.settings)
        check_settings(settings)
        made = await self._engine.create_collection(
            request.name, request.dim, request.model_fingerprint, settings, request.request_id
        )
        return collection_service_pb2.CreateCollectionResponse(
            collection=wire.collection_to_pb(made)
        )

    async def GetCollection(
        self, request: collection_service_pb2.GetCollectionRequest, context: Context
    ) -> collection_service_pb2.GetCollectionResponse:
        found = await self._engine.get_collection(
            request.name, with_attributes=request.include_attributes
        )
        return collection_service_pb2.GetCollectionResponse(collection=wire.collection_to_pb(found))

    async def ListCollections(
        self, request: collection_service_pb2.ListCollectionsRequest, context: Context
    ) -> collection_service_pb2.ListCollectionsResponse:
        size = page_size_of(request.page_size)
        found = await self._engine.list_collections(request.page_token, size)
        return collection_service_pb2.ListCollectionsResponse(
            collections=[wire.collection_to_pb(collection) for collection in found],
            next_page_token=found[-1].name if len(found) == size else "",
        )

    async def UpdateCollection(
        self, request: collection_service_pb2.UpdateCollectionRequest, context: Context
    ) -> collection_service_pb2.UpdateCollectionResponse:
        change = wire.change_from_pb(request.settings, request.update_mask)
        check_change(change)
        _check_request_id(request.request_id)
        changed = await self._engine.update_collection(request.name, change, request.request_id)
        return collection_service_pb2.UpdateCollectionResponse(
            collection=wire.collection_to_pb(changed)
        )

    async def CopyCollection(
        self, request: collection_service_pb2.CopyCollectionRequest, context: Context
    ) -> collection_service_pb2.CopyCollectionResponse:
        _check_name(request.name)
        _check_request_id(request.request_id)
        copy = await self._engine.copy_collection(
            request.source,
            request.name,
            request.request_id,
            Deadline.of(context, LONG_DEADLINE_S),
        )
        return collection_service_pb2.CopyCollectionResponse(collection=wire.collection_to_pb(copy))

    async def DeleteCollection(
        self, request: collection_service_pb2.DeleteCollectionRequest, context: Context
    ) -> collection_service_pb2.DeleteCollectionResponse:
        _check_request_id(request.request_id)
        count = await self._engine.delete_collection(request.name, request.request_id)
        return collection_service_pb2.DeleteCollectionResponse(deleted_candidates=count)

    async def SetAlias(
        self, request: collection_service_pb2.SetAliasRequest, context: Context
    ) -> collection_service_pb2.SetAliasResponse:
        _check_name(request.alias, "alias")
        _check_request_id(request.request_id)
        previous = await self._engine.set_alias(
            request.alias, request.collection, request.request_id
        )
        return collection_service_pb2.SetAliasResponse(previous_collection=previous)

    async def DeleteAlias(
        self, request: collection_service_pb2.DeleteAliasRequest, context: Context
    ) -> collection_service_pb2.DeleteAliasResponse:
        _check_request_id(request.request_id)
        await self._engine.delete_alias(request.alias, request.request_id)
        return collection_service_pb2.DeleteAliasResponse()


class IndexServicer(index_pb2_grpc.IndexServiceServicer):
    """Serves `mmesh.api.index.v1.IndexService`."""

    def __init__(
        self, engine: IndexEngine, settings: IndexSettings, stopping: asyncio.Event
    ) -> None:
        self._engine, self._settings, self._stopping = engine, settings, stopping
        self._attributes = AttributeCache()

    async def UpsertCandidates(
        self, request: index_pb2.UpsertCandidatesRequest, context: Context
    ) -> index_pb2.UpsertCandidatesResponse:
        _check_count("candidates", len(request.candidates), MAX_CANDIDATES)
        _check_request_id(request.request_id)
        write = (
            request.collection,
            _candidates_of(request.candidates),
            wire.vectors_from_pb(request.vectors),
            request.model_fingerprint,
            request.request_id,
        )
        if request.fill:
            token = await self._engine.fill(*write)
        else:
            token = await self._engine.upsert(*write, _mirror_vectors_of(request))
        return index_pb2.UpsertCandidatesResponse(token=token)

    async def DeleteCandidates(
        self, request: index_pb2.DeleteCandidatesRequest, context: Context
    ) -> index_pb2.DeleteCandidatesResponse:
        _check_ids(request.ids)
        _check_request_id(request.request_id)
        ids = list(dict.fromkeys(request.ids))
        count, token = await self._engine.delete(request.collection, ids, request.request_id)
        return index_pb2.DeleteCandidatesResponse(deleted=count, token=token)

    async def DeleteCandidatesByFilter(
        self, request: index_pb2.DeleteCandidatesByFilterRequest, context: Context
    ) -> index_pb2.DeleteCandidatesByFilterResponse:
        if not request.HasField("filter"):
            raise InvalidField("filter", "is not set; `all_of` without filters deletes everything")
        _check_request_id(request.request_id)
        condition = wire.filter_from_pb(request.filter)
        count, token = await self._engine.delete_by_filter(
            request.collection, condition, request.request_id
        )
        return index_pb2.DeleteCandidatesByFilterResponse(deleted=count, token=token)

    async def BatchGetCandidates(
        self, request: index_pb2.BatchGetCandidatesRequest, context: Context
    ) -> index_pb2.BatchGetCandidatesResponse:
        _check_ids(request.ids)
        if request.max_bytes < 0:
            raise InvalidField("max_bytes", f"is {request.max_bytes}; it must not be negative")
        ids = list(dict.fromkeys(request.ids))
        found, left = await self._engine.get(
            request.collection, ids, request.max_bytes, images=not request.omit_images
        )
        return await built(
            candidate_bytes(found),
            lambda: index_pb2.BatchGetCandidatesResponse(
                candidates=map(wire.candidate_to_pb, found), left_ids=left
            ),
        )

    async def ListCandidates(
        self, request: index_pb2.ListCandidatesRequest, context: Context
    ) -> index_pb2.ListCandidatesResponse:
        size = page_size_of(request.page_size)
        most = min(PAGE_BYTES, self._settings.max_message_bytes // 2)
        row, page = await self._engine.page(
            request.collection, request.page_token, size, most, vectors=request.include_vectors
        )
        found: list[Candidate] = []
        filled = 0
        for one in page.rows:
            candidate = await self._engine.candidate(row.name, one, images=request.include_images)
            filled += candidate.size + len(one.vector)
            if filled > most and found:  # one alone always fits
                break
            found.append(candidate)
        shown = page.rows[: len(found)]
        is_last = page.is_last and len(shown) == len(page.rows)
        return await built(
            filled,
            lambda: index_pb2.ListCandidatesResponse(
                candidates=map(wire.candidate_to_pb, found),
                next_page_token="" if is_last else shown[-1].id,
                vectors=_vectors_to_pb(shown, row.dim) if request.include_vectors else None,
                model_fingerprint=row.model_fingerprint,
            ),
        )

    async def Search(
        self, request: index_pb2.SearchRequest, context: Context
    ) -> index_pb2.SearchResponse:
        response = index_pb2.SearchResponse()
        await self._search(request, response, Deadline.of(context, DEFAULT_DEADLINE_S))
        return response

    async def SearchStream(
        self, request_iterator: AsyncIterator[index_pb2.SearchStreamRequest], context: Context
    ) -> AsyncIterator[index_pb2.SearchStreamResponse]:
        most = self._settings.max_message_bytes // 2
        async for answer in SearchStream(self._search, self._stopping, most).answers(
            request_iterator
        ):
            yield answer

    async def _search(
        self,
        request: index_pb2.SearchRequest,
        response: index_pb2.SearchResponse,
        deadline: Deadline,
    ) -> None:
        search = vector_search_from_pb(request)
        _check_count("queries", len(search.queries), MAX_QUERIES)
        result = await self._engine.search(search, deadline)
        filled = 0
        for lists in result.lists:
            for modality, found in zip(search.modalities, lists, strict=True):
                _fill_list(response.lists.add(), modality, found, self._attributes)
                filled += len(found.ids)
            if filled >= MOST_HITS_AT_ONCE:  # some milliseconds: others have their turn
                filled = 0
                await asyncio.sleep(0)
        for name, meant in result.unknown.items():
            response.unknown_attributes.add(name=name, nearest=meant)
        response.token = result.token
        response.search_seconds, response.queue_seconds = result.search_s, result.queue_s

    async def GetShard(
        self, request: index_pb2.GetShardRequest, context: Context
    ) -> index_pb2.GetShardResponse:
        state = self._engine.describe_shard()
        return index_pb2.GetShardResponse(
            shard=self._settings.shard,
            shard_count=self._settings.shard_count,
            candidates=state.candidates,
            vector_bytes=state.memory.get("vectors", 0) + state.memory.get("delta", 0),
            lag=state.lag,
            ready=self._engine.is_ready,
            replica=self._engine.replica,
            segments=map(_segment_to_pb, state.segments),
            memory=[index_pb2.MemoryPart(name=n, bytes=b) for n, b in state.memory.items()],
            refused_collections=state.refused,
        )

    async def Compact(
        self, request: index_pb2.CompactRequest, context: Context
    ) -> index_pb2.CompactResponse:
        deadline = Deadline.of(context, LONG_DEADLINE_S)
        state = await self._engine.compact(request.collection, deadline)
        return index_pb2.CompactResponse(segments=map(_segment_to_pb, state.segments))

    async def CreateSnapshot(
        self, request: index_pb2.CreateSnapshotRequest, context: Context
    ) -> index_pb2.CreateSnapshotResponse:
        deadline = Deadline.of(context, LONG_DEADLINE_S)
        number, token = await self._engine.snapshot(request.collection, deadline)
        return index_pb2.CreateSnapshotResponse(number=number, token=token)


def _mirror_vectors_of(request: index_pb2.UpsertCandidatesRequest) -> MirrorVectors | None:
    if not request.HasField("mirror_vectors"):
        return None
    rows = wire.vectors_from_pb(request.mirror_vectors)
    return MirrorVectors(rows, request.mirror_fingerprint)


def _vectors_to_pb(stored: Sequence[StoredCandidate], dim: int) -> vector_pb2.Vectors:
    rows = unpack(b"".join(one.vector for one in stored), dim)
    return wire.vectors_to_pb(rows)


def _segment_to_pb(state: SegmentState) -> index_pb2.Segment:
    values = asdict(state) | {"modality": wire.modality_to_pb(state.modality)}
    return index_pb2.Segment(**values)


def _candidates_of(messages: Any) -> list[Candidate]:
    seen: dict[str, int] = {}
    candidates = []
    for number, message in enumerate(messages):
        path = f"candidates[{number}]"
        candidate = wire.candidate_from_pb(message, path)
        check_candidate(candidate, path)
        if candidate.id in seen:
            problem = f"is {candidate.id!r}, like that of candidates[{seen[candidate.id]}]"
            raise InvalidField(f"{path}.id", problem)
        seen[candidate.id] = number
        candidates.append(candidate)
    return candidates


def _fill_list(
    message: index_pb2.HitList, modality: Modality, found: Found, attributes: AttributeCache
) -> None:
    message.modality = wire.modality_to_pb(modality)
    message.ids.extend(found.ids)
    message.scores = found.scores.astype("<f4", copy=False).tobytes()
    if any(found.attributes):
        message.attributes.extend(map(attributes.message, found.attributes))


def _check_name(name: str, path: str = "name") -> None:
    if not _NAME.fullmatch(name):
        problem = f"is {name[:80]!r}; use 1 to 63 of a-z 0-9 _ -, first a letter or digit"
        raise InvalidField(path, problem)


def _check_count(path: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise InvalidField(path, f"has {count} entries; 1 to {most} are allowed")


def _check_ids(ids: Any) -> None:
    _check_count("ids", len(ids), MAX_CANDIDATES)
    for number, candidate_id in enumerate(ids):
        check_id(candidate_id, f"ids[{number}]")


def _check_request_id(request_id: str) -> None:
    if len(request_id.encode()) > 128:
        raise InvalidField("request_id", "is over 128 bytes")
