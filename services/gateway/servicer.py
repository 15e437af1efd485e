"""gRPC servicer of the public API: protobuf to plain Python and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from mmesh import wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.candidates import Candidate, check_candidate
from mmesh.collections import check_change, check_settings
from mmesh.errors import InvalidField, InvalidFilter, InvalidRequest, MessageTooLarge, MmeshError
from mmesh.filters import check_filter
from mmesh.mesh_status import MeshStatus
from mmesh.search import SearchResult
from mmesh.serving.deadline import Context, Deadline
from mmesh.wire.encoding import built, candidate_bytes, content_bytes
from mmesh.wire.search import result_to_pb, search_from_pb
from mmesh.wire.status import status_to_pb
from services.gateway.config import GatewaySettings
from services.gateway.fair_gate import Caller
from services.gateway.interfaces import Embeddings
from services.gateway.mesh import Mesh
from services.gateway.search.answers import VERSION
from services.gateway.writes.draft import Noticed, Refused, Upsert
from services.gateway.writes.ingest import Batch, BatchLimit, Stored, Stream, until

MAX_SEARCHES = 256
MAX_CANDIDATES = 256
SLOWER_BATCH = 16
HIT_BYTES = 64
"""Of a hit, and of each of its attributes, about."""
COST_IN_BATCH, BYTES_OF_A_SEARCH = 0.05, 1 << 15
"""What a further search of a batch costs beside a single one, so that of two whole batches one is
embedded while the other is searched; and bytes that cost as much as one: the largest filter counts
as 16, so no two are worked on at a time. See docs/adr/0032."""


class RetrievalServicer(rpc.RetrievalServiceServicer):
    """Serves `mmesh.api.gateway.v1.RetrievalService`."""

    def __init__(self, mesh: Mesh, settings: GatewaySettings, draining: asyncio.Event) -> None:
        self._mesh, self._settings, self._draining = mesh, settings, draining

    def _deadline(self, context: Context) -> Deadline:
        return Deadline.of(context, self._settings.deadline_s)

    # -- searches

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        search, caller = search_from_pb(request), _caller_of(context, request.ByteSize())
        result = await self._mesh.pipeline.search(search, self._deadline(context), caller)
        return await built(_shown_bytes(result), lambda: result_to_pb(result))

    async def SearchBatch(
        self, request: pb.SearchBatchRequest, context: Context
    ) -> pb.SearchBatchResponse:
        _check_count("searches", len(request.searches), MAX_SEARCHES)
        read = partial(search_from_pb, filter_of=wire.FilterReader())
        searches = [_try(read, message) for message in request.searches]
        good = [search for search in searches if not isinstance(search, MmeshError)]
        caller = _caller_of(context, request.ByteSize(), len(good))
        found = await self._mesh.pipeline.search_batch(good, self._deadline(context), caller)
        answers = iter(found)
        outcomes = [s if isinstance(s, MmeshError) else next(answers) for s in searches]
        return await built(
            sum(map(_shown_bytes, outcomes)),
            lambda: pb.SearchBatchResponse(results=map(_outcome_to_pb, outcomes)),
        )

    # -- candidates

    async def UpsertCandidates(
        self, request: pb.UpsertCandidatesRequest, context: Context
    ) -> pb.UpsertCandidatesResponse:
        _check_count("candidates", len(request.candidates), MAX_CANDIDATES)
        outcomes = _candidates_of(request.candidates)
        for refused in (one for one in outcomes if isinstance(one, Refused)):
            raise refused.error
        candidates = [one for one in outcomes if isinstance(one, Candidate)]
        given = _embeddings_of(request, "vectors")
        numbered = list(enumerate(candidates))
        upsert = Upsert(request.collection, numbered, request.request_id, given)
        draft = self._mesh.begin(upsert)
        token = await draft.store_all(self._deadline(context))
        return pb.UpsertCandidatesResponse(token=token, notices=map(_notice_to_pb, draft.noticed))

    async def DeleteCandidates(
        self, request: pb.DeleteCandidatesRequest, context: Context
    ) -> pb.DeleteCandidatesResponse:
        deleted, token = await self._mesh.index.delete(
            request.collection, request.ids, request.request_id, self._deadline(context)
        )
        return pb.DeleteCandidatesResponse(deleted=deleted, token=token)

    async def DeleteCandidatesByFilter(
        self, request: pb.DeleteCandidatesByFilterRequest, context: Context
    ) -> pb.DeleteCandidatesByFilterResponse:
        if not request.HasField("filter"):
            raise InvalidFilter("filter", "is missing; `all_of` without filters deletes all")
        condition = wire.filter_from_pb(request.filter)
        check_filter(condition)
        deleted, token = await self._mesh.index.delete_by_filter(
            request.collection, condition, request.request_id, self._deadline(context)
        )
        return pb.DeleteCandidatesByFilterResponse(deleted=deleted, token=token)

    async def BatchGetCandidates(
        self, request: pb.BatchGetCandidatesRequest, context: Context
    ) -> pb.BatchGetCandidatesResponse:
        found, left = await self._mesh.index.get(
            request.collection,
            request.ids,
            self._deadline(context),
            self._settings.most_content_bytes,
            include_images=not request.omit_images,
        )
        if left:
            raise MessageTooLarge(
                f"the candidates of {len(request.ids)} ids do not fit into one message; ask for "
                f"{len(found)} at a time, or leave out the bytes of pictures"
            )
        return await built(
            candidate_bytes(found),
            lambda: pb.BatchGetCandidatesResponse(candidates=map(wire.candidate_to_pb, found)),
        )

    async def ListCandidates(
        self, request: pb.ListCandidatesRequest, context: Context
    ) -> pb.ListCandidatesResponse:
        page = await self._mesh.index.page(
            request.collection,
            request.page_size,
            request.page_token,
            self._deadline(context),
            include_images=request.include_images,
            include_vectors=request.include_vectors,
        )
        return await built(
            candidate_bytes(page.candidates),
            lambda: pb.ListCandidatesResponse(
                candidates=map(wire.candidate_to_pb, page.candidates),
                next_page_token=page.next_token,
                vectors=None if page.vectors is None else wire.vectors_to_pb(page.vectors),
                model_fingerprint=page.model_fingerprint,
            ),
        )

    # -- ingest

    async def Ingest(
        self, request_iterator: AsyncIterator[pb.IngestRequest], context: Context
    ) -> AsyncIterator[pb.IngestResponse]:
        opened = await _open_of(request_iterator)
        await self._mesh.index.get_collection(opened.collection, self._deadline(context))
        yield pb.IngestResponse(
            opened=pb.IngestOpened(
                window=self._settings.ingest_window,
                max_candidates=MAX_CANDIDATES,
                max_message_bytes=self._settings.max_message_bytes,
            )
        )
        batches = until(self._draining, _batches_of(request_iterator))
        told, limit = False, BatchLimit(SLOWER_BATCH, MAX_CANDIDATES)
        stream = Stream(opened.collection, opened.ingest_id, opened.fill)
        async with aclosing(self._mesh.ingester.run(stream, batches)) as outcomes:
            async for stored in outcomes:
                for event in _events_of(stored, limit.note(stored)):
                    yield event
                if self._draining.is_set() and not told:
                    told = True
                    yield pb.IngestResponse(draining=pb.IngestDraining())
        if self._draining.is_set() and not told:
            yield pb.IngestResponse(draining=pb.IngestDraining())

    # -- collections

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        deadline = self._deadline(context)
        settings = wire.settings_from_pb(request.settings)
        check_settings(settings)
        model = await self._mesh.encoders.find(request.model, deadline)
        made = await self._mesh.index.create_collection(
            request.name, model, settings, request.request_id, deadline
        )
        return pb.CreateCollectionResponse(collection=wire.collection_to_pb(made))

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: Context
    ) -> pb.GetCollectionResponse:
        found = await self._mesh.index.get_collection(
            request.name, self._deadline(context), with_attributes=request.include_attributes
        )
        return pb.GetCollectionResponse(collection=wire.collection_to_pb(found))

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: Context
    ) -> pb.ListCollectionsResponse:
        found, next_page_token = await self._mesh.index.list_collections(
            request.page_size, request.page_token, self._deadline(context)
        )
        return pb.ListCollectionsResponse(
            collections=[wire.collection_to_pb(collection) for collection in found],
            next_page_token=next_page_token,
        )

    async def UpdateCollection(
        self, request: pb.UpdateCollectionRequest, context: Context
    ) -> pb.UpdateCollectionResponse:
        change = wire.change_from_pb(request.settings, request.update_mask)
        check_change(change)
        updated = await self._mesh.index.update_collection(
            request.name, change, request.request_id, self._deadline(context)
        )
        self._mesh.catalog.forget()
        return pb.UpdateCollectionResponse(collection=wire.collection_to_pb(updated))

    async def CopyCollection(
        self, request: pb.CopyCollectionRequest, context: Context
    ) -> pb.CopyCollectionResponse:
        copy = await self._mesh.index.copy_collection(
            request.source, request.name, request.request_id, self._deadline(context)
        )
        self._mesh.catalog.forget()
        return pb.CopyCollectionResponse(collection=wire.collection_to_pb(copy))

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        count = await self._mesh.index.delete_collection(
            request.name, request.request_id, self._deadline(context)
        )
        self._mesh.catalog.forget()
        return pb.DeleteCollectionResponse(deleted_candidates=count)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        previous = await self._mesh.index.set_alias(
            request.alias, request.collection, request.request_id, self._deadline(context)
        )
        self._mesh.catalog.forget()
        return pb.SetAliasResponse(previous_collection=previous)

    async def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: Context
    ) -> pb.DeleteAliasResponse:
        await self._mesh.index.delete_alias(
            request.alias, request.request_id, self._deadline(context)
        )
        self._mesh.catalog.forget()
        return pb.DeleteAliasResponse()

    async def GetStatus(
        self, request: pb.GetStatusRequest, context: Context
    ) -> pb.GetStatusResponse:
        services = await self._mesh.status(self._deadline(context))
        return status_to_pb(MeshStatus(tuple(services), VERSION, self._mesh.index.shard_count))


def _caller_of(context: Context, size_bytes: int, searches: int = 1) -> Caller:
    """Return who calls, told by connection, and what the searches of a message cost."""
    cost = 1 + COST_IN_BATCH * (searches - 1) + size_bytes / BYTES_OF_A_SEARCH
    return Caller(context.peer(), cost)


def _try(convert: Any, message: Any) -> Any:
    try:
        return convert(message)
    except MmeshError as error:
        return error


def _outcome_to_pb(outcome: Any) -> pb.SearchResult:
    if isinstance(outcome, MmeshError):
        return pb.SearchResult(problem=wire.problem_to_pb(outcome))
    return pb.SearchResult(response=result_to_pb(outcome))


def _shown_bytes(outcome: SearchResult | MmeshError) -> int:
    """Return about how many bytes an answer has."""
    if isinstance(outcome, MmeshError):
        return 0
    contents = content_bytes(hit.content for hit in outcome.hits if hit.content is not None)
    return contents + sum(HIT_BYTES * (1 + len(hit.attributes)) for hit in outcome.hits)


def _check_count(path: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise InvalidField(path, f"has {count} entries; 1 to {most} are allowed")


def _candidates_of(messages: Sequence[Any]) -> list[Candidate | Refused]:
    return [_candidate_of(message, number) for number, message in enumerate(messages)]


def _candidate_of(message: Any, number: int) -> Candidate | Refused:
    path = f"candidates[{number}]"
    try:
        candidate = wire.candidate_from_pb(message, path)
        check_candidate(candidate, path)
    except InvalidField as error:
        return Refused(message.id, number, error)
    return candidate


def _embeddings_of(
    request: pb.UpsertCandidatesRequest | pb.IngestBatch, path: str
) -> Embeddings | None:
    """Return the vectors that came with candidates, one for each, or None without any."""
    if not request.HasField("vectors"):
        return None
    matrix = wire.vectors_from_pb(request.vectors)
    if len(matrix) != len(request.candidates):
        count = len(request.candidates)
        raise InvalidField(path, f"has {len(matrix)} rows for {count} candidates")
    return Embeddings(matrix, request.model_fingerprint)


async def _open_of(requests: AsyncIterator[pb.IngestRequest]) -> pb.IngestOpen:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("step") != "open":
        raise InvalidRequest("the first message of an ingest must be `open`")
    if not 1 <= len(first.open.ingest_id.encode()) <= 64:
        raise InvalidField("open.ingest_id", "must have 1 to 64 bytes; a UUID does")
    return first.open


async def _batches_of(
    requests: AsyncIterator[pb.IngestRequest],
) -> AsyncGenerator[Batch, None]:
    expected = None
    while (request := await anext(requests, None)) is not None:
        made = [_batch_of(request, expected)]
        expected = made[0].sequence + 1
        del request
        yield made.pop()  # held by nobody here while the next one is waited for


def _batch_of(request: pb.IngestRequest, expected: int | None) -> Batch:
    if request.WhichOneof("step") != "batch":
        raise InvalidRequest("all messages of an ingest but the first must be `batch`")
    batch = request.batch
    if batch.sequence < 1 or expected not in (None, batch.sequence):
        raise InvalidField("batch.sequence", f"is {batch.sequence}; {expected or 1} is due")
    _check_count("batch.candidates", len(batch.candidates), MAX_CANDIDATES)
    given = _embeddings_of(batch, "batch.vectors")
    return Batch(batch.sequence, _candidates_of(batch.candidates), given)


def _notice_to_pb(one: Noticed) -> candidate_pb2.CandidateNotice:
    return candidate_pb2.CandidateNotice(
        number=one.number, id=one.id, reason=one.reason, message=one.message
    )


def _events_of(stored: Stored, limit: int | None) -> list[pb.IngestResponse]:
    events = []
    if stored.refused:
        refused = [
            pb.RejectedCandidate(id=r.id, number=r.number, problem=wire.problem_to_pb(r.error))
            for r in stored.refused
        ]
        rejected = pb.IngestRejected(sequence=stored.sequence, candidates=refused)
        events.append(pb.IngestResponse(rejected=rejected))
    if stored.noticed:
        notices = map(_notice_to_pb, stored.noticed)
        noticed = pb.IngestNoticed(sequence=stored.sequence, notices=notices)
        events.append(pb.IngestResponse(noticed=noticed))
    if limit is not None:
        slow = pb.IngestSlowDown(max_candidates=limit)
        events.append(pb.IngestResponse(slow_down=slow))
    ack = pb.IngestAck(through_sequence=stored.sequence, token=stored.token, stored=stored.stored)
    events.append(pb.IngestResponse(ack=ack))
    return events
