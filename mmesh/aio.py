"""AsyncClient: everything a mesh offers, as typed coroutines."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from mmesh import arguments, wire
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.content import Content, Part
from mmesh.errors import FailedPrecondition, MmeshError
from mmesh.search import Search, SearchResult, check_search
from mmesh.vectors import DataType
from mmesh.wire.errors import error_of
from mmesh.wire.search import result_from_pb, search_to_pb
from mmesh.wire.transport import (
    check_not_cut_off,
    check_not_forked,
    check_target,
    closed,
    open_channel,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from mmesh.candidates import Candidate, Embedded, Page, WriteReport
    from mmesh.collections import Collection, CollectionSettings, SettingsChange
    from mmesh.filters import Filter
    from mmesh.ingest import Progress
    from mmesh.mesh_status import MeshStatus

DEFAULT_ADDRESS = "127.0.0.1:50550"
DEFAULT_TIMEOUT_S = 30.0
MAX_PAGE = 1000
_OTHER_LOOP = (
    "this AsyncClient belongs to another event loop: make one in each `asyncio.run`, or use "
    "Client, which has its own"
)
Answer = TypeVar("Answer")
Item = TypeVar("Item")
Given = Part | bytes | os.PathLike[str]
Query = Content | Given | Sequence[Given]


def default_address() -> str:
    """Return `MMESH_TARGET_ADDRESS`, else the address of the local mesh.

    Raises:
        InvalidField: the variable is set to what is no address; it is named.
    """
    address = os.environ.get("MMESH_TARGET_ADDRESS", DEFAULT_ADDRESS)
    check_target(address, "MMESH_TARGET_ADDRESS")
    return address


@arguments.checked
class AsyncClient:
    """A client of one mesh; an async context manager.

    Every call takes `timeout` in seconds and raises the class of `mmesh.errors` that says what is
    wrong. Unary calls are retried while the gateway is away for a moment. Those that change
    something carry an idempotency key, so that a repetition has no effect and returns the first
    answer: one of their own, or the `request_id` that is given, which spans several calls.

    It connects with the first call, and belongs to the event loop of that one: calls on another
    raise `FailedPrecondition` at once. So do calls after a `fork` in the child, if its parent has
    connected a client before; else the child may use this one, and others.

    Example:
        async with AsyncClient() as client:
            result = await client.search("photos", "a cat on a sofa", limit=5)
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address or default_address()
        check_target(self._address)
        self._channel: grpc.aio.Channel | None = None
        self._known_stub: rpc.RetrievalServiceAsyncStub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; later calls, and those that run, end with `FailedPrecondition`."""
        self._is_closed = True
        channel, self._channel, self._known_stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    @property
    def _stub(self) -> rpc.RetrievalServiceAsyncStub:
        """What calls go through; opens the channel when it is first needed."""
        check_not_forked()
        if self._is_closed:
            raise closed()
        if self._known_stub is None:
            self._loop = asyncio.get_running_loop()
            self._channel = open_channel(self._address)
            self._known_stub = rpc.RetrievalServiceStub(self._channel)
        elif self._loop is not asyncio.get_running_loop():
            raise FailedPrecondition(_OTHER_LOOP)
        return self._known_stub

    # -- searches

    async def search(
        self,
        collection: str,
        query: Query,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **options: Any,
    ) -> SearchResult:
        """Search with text, a picture's bytes or path, or a list of these.

        Options are `Search`'s fields; enums may be given by name, such as `target="image"`.
        """
        request = _search_to_pb(Search(collection, arguments.content(query, "query"), **options))
        return result_from_pb(await _answer(self._stub.Search(request, timeout=timeout)))

    async def search_batch(
        self, searches: Sequence[Search], *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> list[SearchResult | MmeshError]:
        """Return an answer or an error for each of up to 256 searches, in order.

        A search that cannot be sent, since a field has a wrong type or value, is an error, too.
        """
        asked = list(map(_request_or_error, searches))
        good = [one for one in asked if not isinstance(one, MmeshError)]
        if asked and not good:
            return [one for one in asked if isinstance(one, MmeshError)]
        request = pb.SearchBatchRequest(searches=good)
        reply = await _answer(self._stub.SearchBatch(request, timeout=timeout))
        answers = map(_outcome, reply.results)
        return [one if isinstance(one, MmeshError) else next(answers) for one in asked]

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
    ) -> WriteReport:
        """Encode and store up to 256 candidates, all or none; return the token and the notices.

        Nothing is encoded when `vectors` (n, dim) are given, one row for each candidate (int8
        stands for value / 127); `model_fingerprint` names their model, which must be the
        collection's. They travel as `data_type`; the index brings them to unit length.

        Of several candidates with one id the last one stays. The notices of the report say this,
        and which candidates the model did not read whole. Candidates with very many values of
        attributes, some 50,000 of all together, are refused; `ingest` takes them.
        """
        from mmesh.candidates import as_numbers, check_candidate, check_vectors

        candidates = arguments.candidates(candidates, "candidates")
        for number, candidate in enumerate(candidates):
            check_candidate(candidate, f"candidates[{number}]")
        request = pb.UpsertCandidatesRequest(
            collection=collection,
            candidates=[wire.candidate_to_pb(candidate) for candidate in candidates],
            request_id=request_id or _new_id(),
            model_fingerprint=model_fingerprint,
        )
        if vectors is not None:
            matrix = as_numbers(vectors, "vectors")
            check_vectors(matrix, len(candidates))
            request.vectors.CopyFrom(wire.directions_to_pb(matrix, data_type))
        reply = await _answer(self._stub.UpsertCandidates(request, timeout=timeout))
        return _write_report([candidate.id for candidate in candidates], reply)

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
        from mmesh.filters import check_filter

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
        include_images: bool = True,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> list[Candidate]:
        """Return those of up to 1000 ids that exist, with content, in the order of the ids.

        Raises:
            MessageTooLarge: they do not fit into one message; it says how many to ask for. Without
                the bytes of pictures they mostly do.
        """
        request = pb.BatchGetCandidatesRequest(
            collection=collection, ids=ids, omit_images=not include_images
        )
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
        notice_ids: int = 20,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        """Ingest any number of candidates; refused ones are in the report, the rest is stored.

        Goes on by itself after broken connections, where the last acknowledgement left off, while
        the mesh does not answer for up to `patience_s` seconds; a source may take any time. Of
        several candidates with one id the last one stays; the report counts them, and names the
        first `notice_ids` of those that the model did not read whole.

        `Embedded` candidates are not encoded; `model_fingerprint` names the model of their
        vectors, which must be the collection's, and the vectors travel as `data_type`.

        With `fill`, the collection is filled up from its mirror: candidates that it has, has
        deleted lately, or that its mirror does not have are left alone, and count as stored.
        """
        from mmesh.ingest import Ingest

        source = _aiter(candidates)
        ingest = Ingest(
            self._stub,
            collection,
            source,
            batch_size,
            patience_s,
            model_fingerprint,
            data_type,
            fill,
            notice_ids,
        )
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
        from mmesh.collections import check_settings

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
        from mmesh.collections import check_change

        check_change(change)
        settings, mask = wire.change_to_pb(change)
        request = pb.UpdateCollectionRequest(
            name=name, settings=settings, update_mask=mask, request_id=request_id or _new_id()
        )
        reply = await _answer(self._stub.UpdateCollection(request, timeout=timeout))
        return wire.collection_from_pb(reply.collection)

    async def get_collection(
        self,
        name: str,
        *,
        include_attributes: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Collection:
        """Return one collection, with its attributes if they are asked for."""
        request = pb.GetCollectionRequest(name=name, include_attributes=include_attributes)
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

    async def copy_collection(
        self,
        source: str,
        name: str,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Collection:
        """Copy what a collection holds now into a new read-only one: a snapshot; return it.

        It appears when it is complete, and writes to the source go on meanwhile. Give it time: it
        copies some 10,000 candidates a second.
        """
        request = pb.CopyCollectionRequest(
            source=source, name=name, request_id=request_id or _new_id()
        )
        reply = await _answer(self._stub.CopyCollection(request, timeout=timeout))
        return wire.collection_from_pb(reply.collection)

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
        from mmesh.wire.status import status_from_pb

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
    except asyncio.CancelledError:
        check_not_cut_off()
        raise


def _write_report(ids: Sequence[str], reply: pb.UpsertCandidatesResponse) -> WriteReport:
    from mmesh.candidates import NoticeBoard, WriteReport

    notices = NoticeBoard(shown_ids=len(ids))
    for one in reply.notices:
        notices.add(one.number, one.id, one.reason, one.message)
    return WriteReport(len(ids), (), reply.token, notices.all(), len(ids) - len(set(ids)))


def _search_to_pb(search: Search) -> pb.SearchRequest:
    """Return the message of a search whose fields may be what calls take."""
    taken = arguments.search(search)
    check_search(taken)
    return search_to_pb(taken)


def _request_or_error(search: Search) -> pb.SearchRequest | MmeshError:
    try:
        return _search_to_pb(search)
    except MmeshError as error:
        return error


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
