"""Index processes on real gRPC that do as told, and the gateway's backend that searches them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress

import grpc
import numpy as np
import pytest

from mmesh import wire
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.index.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
)
from mmesh.content import Modality
from mmesh.errors import MmeshError, ShardUnavailable
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.vector_search import VectorSearch
from mmesh.wire.errors import status_of
from services.gateway.search.fanout import search_shards
from services.gateway.shards.index_backend import IndexBackend
from services.index.search_stream import SearchStream
from tests.effort import patient

TEXT = Modality.TEXT
ORDER = VectorSearch(
    "c", np.eye(1, 4, dtype=np.float32), "m", (TEXT,), 10, None, Consistency.EVENTUAL, ""
)


class Process:
    """An index process that does as told; it may be stopped and started on the same port."""

    def __init__(self, shard, shard_count, *, ready=True, replica="r"):
        self.facts = {"shard": shard, "shard_count": shard_count, "ready": ready}
        self.replica, self.port = replica, 0
        self.calls = Counter()
        self.error: MmeshError | None = None
        """What searches and calls of the log end in."""
        self.free = asyncio.Event()
        """Cleared, no call is answered, not even the question what it holds."""
        self.free.set()
        self.pause_s = 0.0
        """How long a search takes."""
        self.fill = self._name_itself
        """Fills a response with hits."""
        self._server = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def start(self):
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        index = index_pb2_grpc.IndexServiceServicer()
        index.GetShard, index.Search = self._get_shard, self._search_alone
        index.SearchStream = self._search_stream
        index_pb2_grpc.add_IndexServiceServicer_to_server(index, self._server)
        collections = collection_service_pb2_grpc.CollectionServiceServicer()
        collections.GetCollection = self._get_collection
        collections.CopyCollection = self._copy_collection
        collection_service_pb2_grpc.add_CollectionServiceServicer_to_server(
            collections, self._server
        )
        self.port = self._server.add_insecure_port(self.address)
        await self._server.start()
        return self

    async def stop(self):
        await self._server.stop(None)

    async def _get_shard(self, request, context):
        self.calls["GetShard"] += 1
        await self.free.wait()
        return index_pb2.GetShardResponse(**self.facts, replica=self.replica, candidates=7, lag=1)

    async def _search_stream(self, requests, context):
        async for answer in SearchStream(self._search, asyncio.Event()).answers(requests):
            yield answer

    async def _search(self, request, response, deadline):
        self.calls["Search"] += 1
        await self.free.wait()
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.pause_s)
        self.fill(request, response)
        response.token = "e:1"

    def _name_itself(self, request, response):
        for _ in range(wire.row_count(request.queries)):
            response.lists.add(
                ids=["{shard} of {shard_count}".format(**self.facts)],
                scores=np.array([0.5], "<f4").tobytes(),
                attributes=[index_pb2.AttributeMap()],
            )

    async def _search_alone(self, request, context):
        self.calls["Search alone"] += 1
        response = index_pb2.SearchResponse()
        await self._search(request, response, None)
        return response

    async def _get_collection(self, request, context):
        self.calls["GetCollection"] += 1
        await self.free.wait()
        if self.error is not None:
            await context.abort_with_status(_Status.of(self.error))
        found = collection_pb2.Collection(name=request.name, token="e:1")
        return collection_service_pb2.GetCollectionResponse(collection=found)

    async def _copy_collection(self, request, context):
        self.calls["CopyCollection"] += 1
        if self.error is not None:
            await context.abort_with_status(_Status.of(self.error))
        await asyncio.sleep(self.pause_s)
        made = collection_pb2.Collection(name=request.name, token="e:1")
        return collection_service_pb2.CopyCollectionResponse(collection=made)


class _Status(grpc.Status):
    @classmethod
    def of(cls, error):
        status = status_of(error)
        self = cls()
        self.code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self.details = status.message
        self.trailing_metadata = (("grpc-status-details-bin", status.SerializeToString()),)
        return self


@pytest.fixture
async def start_index():
    """Start index processes: (shard, shard_count) of each."""
    running = []

    async def start(*places, **settings):
        made = [Process(*place, **settings) for place in places]
        running.extend(made)
        return [await process.start() for process in made]

    yield start
    for process in running:
        process.free.set()
        await process.stop()


class SearchedIndex(IndexBackend):
    """A backend as the gateway has it, with what tests ask of it again and again."""

    order = ORDER

    async def found(self, timeout_s=3.0):
        """Search, and return the hits' ids: each names its shard."""
        found = await search_shards(self, ORDER, Deadline.after(timeout_s))
        assert found.answered + len(found.missing) == found.total
        return sorted(hit.id for hit in found.lists[0][TEXT])

    async def uses(self, shard_count):
        """Wait until a set is searched; channels reconnect in their own time."""

        async def holds():
            with suppress(ShardUnavailable):
                return await self.found() == [f"{n} of {shard_count}" for n in range(shard_count)]
            return False

        await self.eventually(holds)

    async def serving(self):
        """Return the addresses of the processes that can be searched."""
        return {one.address for one in await self.status(Deadline.after(3)) if one.is_serving}

    @staticmethod
    async def eventually(holds, timeout_s=5.0):
        until = time.monotonic() + patient(timeout_s)
        while not await holds():
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


@pytest.fixture
def backend_of():
    """Open the backend of processes, or of other sources of addresses."""

    @asynccontextmanager
    async def open_backend(*sources):
        backend = SearchedIndex([getattr(source, "address", source) for source in sources])
        try:
            await backend.start()
            yield backend
        finally:
            await backend.close()

    return open_backend
