"""AsyncClient: everything a mesh offers, as typed coroutines."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from mmesh import wire
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.candidates import Candidate, Embedded, IngestReport, Page, check_candidate, check_vectors
from mmesh.collections import (
    Collection,
    CollectionSettings,
    SettingsChange,
    check_change,
    check_settings,
)
from mmesh.content import Content, Image, Part
from mmesh.errors import MmeshError
from mmesh.filters import Filter, check_filter
from mmesh.mesh_status import MeshStatus
from mmesh.search import Search, SearchResult, check_search
from mmesh.vectors import DataType
from mmesh.wire.errors import error_of
from mmesh.wire.search import result_from_pb, search_to_pb
from mmesh.wire.status import status_from_pb
from mmesh.wire.transport import open_channel

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from mmesh.ingest import Progress

DEFAULT_ADDRESS = "127.0.0.1:50550"
DEFAULT_TIMEOUT_S = 30.0
MAX_PAGE = 1000
Answer = TypeVar("Answer")
Item = TypeVar("Item")
Query = Content | Part | bytes | Sequence[Part | bytes]


def default_address() -> str:
    """Return `MMESH_TARGET_ADDRESS`, else the address of the local mesh."""
    return os.environ.get("MMESH_TARGET_ADDRESS", DEFAULT_ADDRESS)


def as_content(query: Query) -> Content:
    """Return content of text, the bytes of a picture, a list of both, or content itself."""
    if isinstance(query, Content):
        return query
    if isinstance(query, str | bytes | Image):
        return Content.of(query)
    return Content.of(*query)


class AsyncClient:
    """A client of one mesh; an async context manager.

    Every call takes `timeout` in seconds and raises the class of `mmesh.errors` that says what is
    wrong. Unary calls are retried while the gateway is away for a moment. Those that change
    something carry an idempotency key, so that a repetition has no effect and returns the first
    answer: one of their own, or the `request_id` that is given, which spans several calls.

    Example:
        async with AsyncClient() as client:
            result = await client.search("photos", "a cat on a sofa", limit=5)
    """

    def __init__(self, address: str | None = None) -> None:
        self._channel = open_channel(address or default_address())
        self._stub = rpc.RetrievalServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    # -- searches

    async def search(
        self,
        collection: str,
        query: Query,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **options: Any,
    ) -> SearchResult:
        """Search with text, a picture's bytes, or a list of both; options are `Search`'s fields."""
        search = Search(collection, as_content(query), **options)
        check_search(search)
        request = search_to_pb(search)
        return result_from_pb(await _answer(self._stub.Search(request, timeout=timeout)))

    async def search_batch(
        self, searches: Sequence[Search], *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> list[SearchResult | MmeshError]:
        """Return an answer or an error for each of up to 256 searches, in order."""
        request = pb.SearchBatchRequest(searches=[search_to_pb(search) for search in searches])
        reply = await _answer(self._stub.SearchBatch(request, timeout=timeout))
        return [_outcome(result) for result in reply.results]

    # -- candidates

    async def upsert_candidates(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        *,
        vectors: ArrayLike | None = None,
        model_fingerprint: str = "",
        data_type: DataType = DataType.FLOAT32,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> str:
        """Encode and store up to 256 candidates, all or none; return the token of the write.

        Nothing is encoded when `vectors` (n, dim) are given, one row for each candidate (int8
        stands for value / 127); `model_fingerprint` names their model, which must be the
        collection's. They travel as `data_type`; the index brings them to unit length.
        """
        for number, candidate in enumerate(candidates):
            check_candidate(candidate, f"candidates[{number}]")
        request = pb.UpsertCandidatesRequest(
            collection=collection,
            candidates=[wire.candidate_to_pb(candidate) for candidate in candidates],
            request_id=request_id or _new_id(),
            model_fingerprint=model_fingerprint,
        )
        if vectors is not None:
            import numpy as np

            matrix = np.asarray(vectors)
            check_vectors(matrix, len(candidates))
            request.vectors.CopyFrom(wire.directions_to_pb(matrix, data_type))
        reply = await _answer(self._stub.UpsertCandidates(request, timeout=timeout))
        return reply.token

    async def delete_candidates(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> tuple[int, str]:
        """Delete candidates; return how many existed, and the token of the write."""
        request = pb.DeleteCandidatesRequest(
            collection=collection, ids=ids, request_id=request_id or _new_id()
        )
        reply = await _answer(self._stub.DeleteCandidates(request, timeout=timeout))
        return reply.deleted, reply.token

    async def delete_candidates_by_filter(
        self,
        collection: str,
        filter: Filter,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> tuple[int, str]:
        """Delete the candidates for which a filter holds; return how many, and the token.

        A candidate that is written meanwhile stays. When the call fails some may be gone; with the
        same `request_id` it goes on, and returns how many were deleted in all. `parse_filter`
        reads a filter from an expression.
        """
        check_filter(filter)
        request = pb.DeleteCandidatesByFilterRequest(
            collection=collection,
            filter=wire.filter_to_pb(filter),
            request_id=request_id or _new_id(),
        )
        reply = await _answer(self._stub.DeleteCandidatesByFilter(request, timeout=timeout))
        return reply.deleted, reply.token

    async def batch_get_candidates(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> list[Candidate]:
        """Return those of up to 1000 ids that exist, with content, in the order of the ids."""
        request = pb.BatchGetCandidatesRequest(collection=collection, ids=ids)
        reply = await _answer(self._stub.BatchGetCandidates(request, timeout=timeout))
        return [wire.candidate_from_pb(message) for message in reply.candidates]

    async def list_candidates(
        self,
        collection: str,
        *,
        page_size: int = 0,
        page_token: str = "",
        include_images: bool = False,
        include_vectors: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Page:
        """Return a page of candidates by id, without the bytes of pictures unless asked for.

        A page with pictures may be shorter than `page_size`, to fit in a message.
        """
        request = pb.ListCandidatesRequest(
            collection=collection,
            page_size=page_size,
            page_token=page_token,
            include_images=include_images,
            include_vectors=include_vectors,
        )
        reply = await _answer(self._stub.ListCandidates(request, timeout=timeout))
        return wire.page_from_pb(reply)

    async def ingest(
        self,
        collection: str,
        candidates: Iterable[Candidate | Embedded] | AsyncIterable[Candidate | Embedded],
        *,
        model_fingerprint: str = "",
        data_type: DataType = DataType.FLOAT32,
        batch_size: int = 64,
        patience_s: float = 60.0,
        fill: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> IngestReport:
        """Ingest any number of candidates; refused ones are in the report, the rest is stored.

        Goes on by itself after broken connections, where the last acknowledgement left off, for
        up to `patience_s` seconds without any progress.

        `Embedded` candidates are not encoded; `model_fingerprint` names the model of their
        vectors, which must be the collection's, and the vectors travel as `data_type`.

        With `fill`, the collection is filled up from its mirror: candidates that it has, has
        deleted lately, or that its mirror does not have are left alone, and count as stored.
        """
        from mmesh.ingest import Ingest

        source = _aiter(candidates)
        ingest = Ingest(
            self._stub, collection, source, batch_size, patience_s, model_fingerprint, data_type,
            fill,
        )  # fmt: skip
        return await ingest.run(on_progress or (lambda _: None))

    # -- collections

    async def create_collection(
        self,
        name: str,
        settings: CollectionSettings | None = None,
        *,
        model: str = "",
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Collection:
        """Create a collection, or return it if it exists; its settings are left as they are then.

        `model` is the name or the fingerprint of a model that the mesh serves; without one it is
        that of the mesh's first encoder.
        """
        request = pb.CreateCollectionRequest(
            name=name, model=model, request_id=request_id or _new_id()
        )
        if settings is not None:
            check_settings(settings)
            request.settings.CopyFrom(wire.settings_to_pb(settings))
        reply = await _answer(self._stub.CreateCollection(request, timeout=timeout))
        return wire.collection_from_pb(reply.collection)

    async def update_collection(
        self,
        name: str,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **change: Unpack[SettingsChange],
    ) -> Collection:
        """Change those settings of a collection that are given, such as `max_limit=9`; return it.

        The others stay as they are. 0 and "" set one back to its default.
        """
        check_change(change)
        settings, mask = wire.change_to_pb(change)
        request = pb.UpdateCollectionRequest(
            name=name, settings=settings, update_mask=mask, request_id=request_id or _new_id()
        )
        reply = await _answer(self._stub.UpdateCollection(request, timeout=timeout))
        return wire.collection_from_pb(reply.collection)

    async def get_collection(
        self, name: str, *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> Collection:
        """Return one collection."""
        request = pb.GetCollectionRequest(name=name)
        reply = await _answer(self._stub.GetCollection(request, timeout=timeout))
        return wire.collection_from_pb(reply.collection)

    async def list_collections(
        self, *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> list[Collection]:
        """Return all collections by name."""
        found: list[Collection] = []
        request = pb.ListCollectionsRequest(page_size=MAX_PAGE)
        while True:
            reply = await _answer(self._stub.ListCollections(request, timeout=timeout))
            found += [wire.collection_from_pb(message) for message in reply.collections]
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token

    async def delete_collection(
        self, name: str, *, request_id: str = "", timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> int:
        """Delete a collection and its aliases; return how many candidates it had."""
        request = pb.DeleteCollectionRequest(name=name, request_id=request_id or _new_id())
        reply = await _answer(self._stub.DeleteCollection(request, timeout=timeout))
        return reply.deleted_candidates

    async def set_alias(
        self,
        alias: str,
        collection: str,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> str:
        """Let an alias name a collection at once; return the name of the one before, or "".

        Every call but `delete_collection` takes an alias for its collection.
        """
        request = pb.SetAliasRequest(
            alias=alias, collection=collection, request_id=request_id or _new_id()
        )
        reply = await _answer(self._stub.SetAlias(request, timeout=timeout))
        return reply.previous_collection

    async def delete_alias(
        self, alias: str, *, request_id: str = "", timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> None:
        """Delete an alias; its collection stays."""
        request = pb.DeleteAliasRequest(alias=alias, request_id=request_id or _new_id())
        await _answer(self._stub.DeleteAlias(request, timeout=timeout))

    async def get_status(self, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> MeshStatus:
        """Return the state of every process of the mesh."""
        reply = await _answer(self._stub.GetStatus(pb.GetStatusRequest(), timeout=timeout))
        return status_from_pb(reply)


def _new_id() -> str:
    """Return an idempotency key, under which the channel may repeat a call."""
    return uuid.uuid4().hex


async def _answer(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from None


def _outcome(result: pb.SearchResult) -> SearchResult | MmeshError:
    if result.WhichOneof("outcome") == "problem":
        return wire.problem_from_pb(result.problem)
    return result_from_pb(result.response)


async def _aiter(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for number, item in enumerate(items):
        if number % 64 == 0:
            await asyncio.sleep(0)  # reading a long iterable must not stop everything else
        yield item
