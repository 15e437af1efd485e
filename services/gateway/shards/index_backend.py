"""gRPC client of the index, in plain Python; each has a deadline, failures are MmeshErrors."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Sequence
from itertools import count
from typing import Any

from mmesh import wire
from mmesh.api.index.v1 import collection_service_pb2, index_pb2
from mmesh.candidates import Candidate, Page
from mmesh.collections import Collection, CollectionSettings, SettingsChange
from mmesh.errors import DeadlineExceeded, LogUnavailable, MmeshError, Unavailable
from mmesh.filters import Filter
from mmesh.mesh_status import ServiceStatus
from mmesh.serving.deadline import Deadline
from mmesh.vector_search import VectorSearch
from mmesh.wire.encoding import built, candidate_bytes
from services.gateway.interfaces import Embeddings, ServedModel
from services.gateway.rpc import MOST_PARTS, answer_of, first_answer, options_for
from services.gateway.shards.hedging import HedgeDelays
from services.gateway.shards.replica import Replica
from services.gateway.shards.shard_search import ReplicatedSearch
from services.gateway.shards.topology import Topology

_COLLECTIONS, _INDEX = "collections", "index"
PART_BYTES = 16 << 20
"""Bytes of candidates in one answer of the index: gRPC copies it on the event loop."""


class IndexBackend:
    """The index. A search goes to every shard; the log is one: writes and reads go to any process.

    `sources` say where the processes are; see `addresses.AddressBook`.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._topology = Topology(sources)
        self._turn = count()
        self._delays = HedgeDelays()

    async def start(self) -> None:
        """Find out which processes there are, and keep watching them."""
        await self._topology.start()

    async def close(self) -> None:
        """End the watching and close all channels."""
        await self._topology.close()

    async def prepare(self, order: VectorSearch, deadline: Deadline) -> ReplicatedSearch:
        """Return a search of the shard set that is in use now."""
        shards = await self._topology.set_in_use(deadline)
        delay = self._delays.of(order.collection)
        return ReplicatedSearch(self._topology, shards, order, next(self._turn), delay)

    @property
    def shard_count(self) -> int:
        """Shards of the set in use."""
        return self._topology.current.shard_count

    async def status(self, deadline: Deadline) -> list[ServiceStatus]:
        """Return the state of every process that is known, and of shards that none holds."""
        await self._topology.ask_all(deadline)
        return self._topology.status()

    async def _any(
        self,
        service: str,
        method: str,
        request: Any,
        deadline: Deadline,
        *,
        takes_long: bool = False,
    ) -> Any:
        """Call one process, and the next when it does not answer.

        What `takes_long` is given all the time: the next would have to begin anew.

        Calls are safe to repeat: those that change something carry a request id, under which the
        next process gives the answer of the first, should that have done it after all.

        Processes that are not trusted come last.
        """

        def ask(replica: Replica, part: Deadline) -> Awaitable[Any]:
            call = getattr(getattr(replica, service), method)
            return answer_of(call(request, **options_for(part)), "the index")

        parts, goes_on = (
            (1, _another_may_begin) if takes_long else (MOST_PARTS, _another_may_answer)
        )
        return await first_answer(self._in_turn(), ask, deadline, goes_on, parts)

    def _in_turn(self) -> list[Replica]:
        replicas = self._topology.replicas
        first = next(self._turn) % max(1, len(replicas))
        return sorted(replicas[first:] + replicas[:first], key=lambda r: not r.is_usable)

    async def create_collection(
        self,
        name: str,
        model: ServedModel,
        settings: CollectionSettings,
        request_id: str,
        deadline: Deadline,
    ) -> Collection:
        """Create a collection for `model`, or return it as it is if it exists."""
        request = collection_service_pb2.CreateCollectionRequest(
            name=name,
            dim=model.dim,
            model_fingerprint=model.fingerprint,
            settings=wire.settings_to_pb(settings),
            request_id=request_id or _new_id(),
        )
        reply = await self._any(_COLLECTIONS, "CreateCollection", request, deadline)
        return wire.collection_from_pb(reply.collection)

    async def get_collection(
        self, name: str, deadline: Deadline, *, with_attributes: bool = False
    ) -> Collection:
        """Return the collection, with its attributes if they are asked for."""
        request = collection_service_pb2.GetCollectionRequest(
            name=name, include_attributes=with_attributes
        )
        reply = await self._any(_COLLECTIONS, "GetCollection", request, deadline)
        return wire.collection_from_pb(reply.collection)

    async def list_collections(
        self, page_size: int, page_token: str, deadline: Deadline
    ) -> tuple[list[Collection], str]:
        """Return a page of collections and the token of the next."""
        request = collection_service_pb2.ListCollectionsRequest(
            page_size=page_size, page_token=page_token
        )
        reply = await self._any(_COLLECTIONS, "ListCollections", request, deadline)
        return [wire.collection_from_pb(c) for c in reply.collections], reply.next_page_token

    async def update_collection(
        self, name: str, change: SettingsChange, request_id: str, deadline: Deadline
    ) -> Collection:
        """Change some settings of a collection; return it."""
        settings, mask = wire.change_to_pb(change)
        request = collection_service_pb2.UpdateCollectionRequest(
            name=name, settings=settings, update_mask=mask, request_id=request_id or _new_id()
        )
        reply = await self._any(_COLLECTIONS, "UpdateCollection", request, deadline)
        return wire.collection_from_pb(reply.collection)

    async def copy_collection(
        self, source: str, name: str, request_id: str, deadline: Deadline
    ) -> Collection:
        """Return a read-only copy of what a collection holds now."""
        request = collection_service_pb2.CopyCollectionRequest(
            source=source, name=name, request_id=request_id or _new_id()
        )
        reply = await self._any(_COLLECTIONS, "CopyCollection", request, deadline, takes_long=True)
        return wire.collection_from_pb(reply.collection)

    async def set_alias(
        self, alias: str, collection: str, request_id: str, deadline: Deadline
    ) -> str:
        """Let an alias name a collection; return the name of the one before, or ""."""
        request = collection_service_pb2.SetAliasRequest(
            alias=alias, collection=collection, request_id=request_id or _new_id()
        )
        reply = await self._any(_COLLECTIONS, "SetAlias", request, deadline)
        return str(reply.previous_collection)

    async def delete_alias(self, alias: str, request_id: str, deadline: Deadline) -> None:
        """Delete an alias."""
        request = collection_service_pb2.DeleteAliasRequest(
            alias=alias, request_id=request_id or _new_id()
        )
        await self._any(_COLLECTIONS, "DeleteAlias", request, deadline)

    async def delete_collection(self, name: str, request_id: str, deadline: Deadline) -> int:
        """Delete the collection; return how many candidates it had."""
        request = collection_service_pb2.DeleteCollectionRequest(
            name=name, request_id=request_id or _new_id()
        )
        reply = await self._any(_COLLECTIONS, "DeleteCollection", request, deadline)
        return int(reply.deleted_candidates)

    async def upsert(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: Embeddings,
        request_id: str,
        deadline: Deadline,
        *,
        mirror: Embeddings | None = None,
        fill: bool = False,
    ) -> str:
        """Store candidates durably, all or none; return the token. See `interfaces.Index`."""
        request = await built(
            candidate_bytes(candidates),
            lambda: index_pb2.UpsertCandidatesRequest(
                collection=collection,
                candidates=map(wire.candidate_to_pb, candidates),
                vectors=wire.vectors_to_pb(vectors.rows),
                model_fingerprint=vectors.fingerprint,
                request_id=request_id or _new_id(),
                mirror_vectors=wire.vectors_to_pb(mirror.rows) if mirror else None,
                mirror_fingerprint=mirror.fingerprint if mirror else "",
                fill=fill,
            ),
        )
        reply = await self._any(_INDEX, "UpsertCandidates", request, deadline)
        return str(reply.token)

    async def delete(
        self, collection: str, ids: Sequence[str], request_id: str, deadline: Deadline
    ) -> tuple[int, str]:
        """Delete candidates durably; return how many existed, and the token."""
        request = index_pb2.DeleteCandidatesRequest(
            collection=collection, ids=ids, request_id=request_id or _new_id()
        )
        reply = await self._any(_INDEX, "DeleteCandidates", request, deadline)
        return int(reply.deleted), str(reply.token)

    async def delete_by_filter(
        self, collection: str, condition: Filter, request_id: str, deadline: Deadline
    ) -> tuple[int, str]:
        """Delete the candidates for which a filter holds; return how many, and the token."""
        request = index_pb2.DeleteCandidatesByFilterRequest(
            collection=collection,
            filter=wire.filter_to_pb(condition),
            request_id=request_id or _new_id(),
        )
        reply = await self._any(
            _INDEX, "DeleteCandidatesByFilter", request, deadline, takes_long=True
        )
        return int(reply.deleted), str(reply.token)

    async def get(
        self,
        collection: str,
        ids: Sequence[str],
        deadline: Deadline,
        most_bytes: int,
        *,
        include_images: bool = True,
    ) -> tuple[list[Candidate], list[str]]:
        """Return what fits, read in parts, and the ids that were left. See `interfaces.Index`."""
        found: list[Candidate] = []
        left, room = list(ids), most_bytes
        while True:
            request = index_pb2.BatchGetCandidatesRequest(
                collection=collection,
                ids=left,
                max_bytes=max(1, min(room, PART_BYTES)),
                omit_images=not include_images,
            )
            reply = await self._any(_INDEX, "BatchGetCandidates", request, deadline)
            part = [wire.candidate_from_pb(message) for message in reply.candidates]
            room -= candidate_bytes(part)
            if found and room < 0:
                return found, left
            found, left = found + part, list(reply.left_ids)
            if not left or room <= 0:
                return found, left

    async def page(
        self,
        collection: str,
        page_size: int,
        page_token: str,
        deadline: Deadline,
        *,
        include_images: bool = False,
        include_vectors: bool = False,
    ) -> Page:
        """Return a page of candidates, with the bytes of pictures and the vectors if asked for."""
        request = index_pb2.ListCandidatesRequest(
            collection=collection,
            page_size=page_size,
            page_token=page_token,
            include_images=include_images,
            include_vectors=include_vectors,
        )
        reply = await self._any(_INDEX, "ListCandidates", request, deadline)
        return wire.page_from_pb(reply)


def _another_may_answer(replica: Replica, error: MmeshError) -> bool:
    """Take note that a process did not answer; tell whether another one might."""
    if not isinstance(error, Unavailable | DeadlineExceeded):
        return False
    # Time may run out because the log is slow, so that alone takes no trust away.
    replica.blame(error, 0.0)
    return not (isinstance(error, LogUnavailable) and replica.is_usable)


def _another_may_begin(replica: Replica, error: MmeshError) -> bool:
    """As `_another_may_answer`, of what takes long: being late says nothing of a process."""
    return isinstance(error, Unavailable) and _another_may_answer(replica, error)


def _new_id() -> str:
    """Return a request id for a caller who gave none."""
    return uuid.uuid4().hex
