"""Stand-ins for the services behind the gateway, at the seam `services.gateway.interfaces`.

They are plain objects that a test fills, breaks and looks into. Real gRPC is below the seam: its
tests use servicers on ports of their own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate

import grpc
import numpy as np
import pytest

from mmesh.api.gateway.v1.gateway_pb2_grpc import (
    RetrievalServiceStub,
    add_RetrievalServiceServicer_to_server,
)
from mmesh.candidates import Candidate
from mmesh.collections import Collection
from mmesh.content import Content, Modality
from mmesh.errors import CollectionNotFound, InvalidField, MmeshError
from mmesh.mesh_status import ServiceRole, ServiceState, ServiceStatus
from mmesh.models.images import decode
from mmesh.serving.host import Host
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from mmesh.wire.transport import open_channel
from services.gateway.config import GatewaySettings
from services.gateway.interfaces import (
    EncodedBatch,
    Judge,
    ReferenceRows,
    Scored,
    ServedModel,
    ShardAnswer,
    Verdict,
)
from services.gateway.mesh import Mesh
from services.gateway.servicer import RetrievalServicer

DIM, MODEL = 4, "m-1"
NAME = "mmesh.api.gateway.v1.RetrievalService"


class Hang:
    """A fault: calls do not end before they are `free`."""

    def __init__(self) -> None:
        self.begun, self.free = asyncio.Event(), asyncio.Event()


@dataclass
class Faulty:
    """Counts calls by method; `faults` has what they end in."""

    calls: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Exception | Hang] = field(default_factory=dict)

    async def start(self) -> None:
        await self.note("start")

    async def close(self) -> None:
        await self.note("close")

    def hang(self, method: str) -> Hang:
        self.faults[method] = hang = Hang()
        return hang

    async def note(self, method: str) -> None:
        self.calls[method] += 1
        fault = self.faults.get(method)
        if isinstance(fault, Hang):
            fault.begun.set()
            await fault.free.wait()
        elif fault is not None:
            raise fault


def _things(dim):
    """Return a reference pool of 16 things, each of which has another near it."""
    return np.repeat(np.eye(dim, dtype=np.float32), -(-16 // dim), axis=0)


@dataclass
class FakeEncoder(Faulty):
    """Decodes pictures as encoders do, and makes a vector of everything.

    Texts with "too long" in them are cut.
    """

    model_known: ServedModel = field(
        default_factory=lambda: ServedModel(
            "lite", MODEL, DIM, {m: ReferenceRows.of(_things(DIM)) for m in Modality}
        )
    )
    inputs: list[tuple[Content, str]] = field(default_factory=list)

    async def model(self, fingerprint, deadline):
        await self.note("model")
        return self.model_known

    async def find(self, wanted, deadline):
        await self.note("find")
        return self.model_known

    async def status(self, deadline):
        await self.note("status")
        return [ServiceStatus(ServiceRole.ENCODER, ServiceState.SERVING)]

    async def encode(self, fingerprint, inputs, role, deadline):
        await self.note("encode")
        self.inputs += inputs
        rows = np.zeros((len(inputs), DIM), np.float32)
        problems, truncated, notices = {}, set(), {}
        for number, (content, _) in enumerate(inputs):
            try:
                for place, part in enumerate(content.parts):
                    if not isinstance(part, str):
                        decode(part.data, f"content.parts[{place}].image.data")
            except InvalidField as error:
                problems[number] = error
                continue
            rows[number] = self.vector_of(content)
            if "too long" in content.text:
                truncated.add(number)
            if "all unknown" in content.text:
                notices[number] = frozenset({"TEXT_UNKNOWN"})
        cut, count = frozenset(truncated), len(inputs)
        return EncodedBatch(rows, fingerprint, problems, cut, count, 0.001, notices, 256)

    @staticmethod
    def vector_of(content: Content) -> np.ndarray:
        seed = int.from_bytes(content.digest()[:8], "little")
        vector = np.random.default_rng(seed).standard_normal(DIM)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass
class FakeIndex(Faulty):
    """Answers every query with the same hits, shared out to its shards; keeps what is written."""

    hits: dict[Modality, list[tuple[str, float]]] = field(default_factory=dict)
    """Ids with scores, best first."""
    shard_count: int = 2
    missing: dict[int, MmeshError] = field(default_factory=dict)
    """Errors of shards."""
    names: dict[str, str] = field(default_factory=lambda: {"photos": "photos"})
    """The collection that each name or alias stands for."""
    stored: dict[str, Candidate] = field(default_factory=dict)
    orders: list[VectorSearch] = field(default_factory=list)
    token: Token = field(default_factory=lambda: Token("e", 10))
    unknown: list[dict[str, str]] = field(default_factory=list)
    """Attributes that each shard does not know."""

    # -- what `interfaces.Index` says

    async def status(self, deadline):
        return [ServiceStatus(ServiceRole.INDEX, ServiceState.SERVING)]

    async def prepare(self, order, deadline):
        await self.note("prepare")
        self.orders.append(order)
        return _Prepared(self, order)

    async def get_collection(self, name, deadline):
        await self.note("get_collection")
        if name not in self.names:
            raise CollectionNotFound(name)
        now = datetime.now(UTC)
        return Collection(self.names[name], DIM, MODEL, {}, self.shard_count, now, str(self.token))

    async def get(self, collection, ids, deadline, most_bytes):
        await self.note("get")
        there = [self.stored[one] for one in ids if one in self.stored]
        sizes = accumulate(one.size for one in there)
        fits = max(1, sum(size <= most_bytes for size in sizes))
        return there[:fits], [one.id for one in there[fits:]]

    async def upsert(self, collection, candidates, vectors, request_id, deadline, **_):
        await self.note("upsert")
        self.stored |= {candidate.id: candidate for candidate in candidates}
        return str(self.token)

    # -- for tests

    def hold(self, **hits: dict[str, float]) -> None:
        """Hold candidates of a modality, such as `text={"a": 0.9}`, and find them so."""
        for name, scores in hits.items():
            self.hits[Modality(name)] = sorted(scores.items(), key=lambda hit: -hit[1])
            for one in scores:
                self.stored[one] = Candidate(one, Content.of(f"the text of {one}"))


@dataclass
class _Prepared:
    index: FakeIndex
    order: VectorSearch

    @property
    def shard_count(self):
        return self.index.shard_count

    async def search(self, shard, deadline):
        await self.index.note("search")
        if shard in self.index.missing:
            raise self.index.missing[shard]
        if self.order.collection not in self.index.names:
            raise CollectionNotFound(self.order.collection)
        lists = [
            [
                Scored(one, modality, score, {})
                for one, score in self.index.hits.get(modality, ())[: self.order.limit]
                if sum(one.encode()) % self.index.shard_count == shard
            ]
            for modality in self.order.modalities
        ]
        unknown = self.index.unknown[shard] if self.index.unknown else {}
        return ShardAnswer([lists] * len(self.order.queries), self.index.token, 0.001, unknown)


@dataclass
class FakeReranker(Faulty):
    """A judge that is trusted wholly; it scores content by its text."""

    scores: dict[str, float | None] = field(default_factory=dict)
    compares_modalities: bool = True
    query_weights: dict[Modality, float] = field(default_factory=lambda: dict.fromkeys(Modality, 1))

    async def status(self, deadline):
        return [ServiceStatus(ServiceRole.RERANKER, ServiceState.SERVING)]

    async def judge(self, deadline):
        await self.note("judge")
        weights = {m: dict.fromkeys(Modality, w) for m, w in self.query_weights.items()}
        return Judge(weights, self.compares_modalities)

    async def rerank(self, query, instruction, candidates, deadline, max_image_tokens=0):
        await self.note("rerank")
        self.budget_s = deadline.remaining()
        scores = [self.scores.get(content.text) for content in candidates]
        return Verdict(scores, "judge-1", "template", 0.001)


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def index() -> FakeIndex:
    return FakeIndex()


@pytest.fixture
def reranker() -> FakeReranker:
    return FakeReranker()


# -- a gateway of its own for each test: a few milliseconds


@pytest.fixture
async def gateway(encoder, index) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a gateway in this process, on real gRPC and with what every server has."""
    settings = GatewaySettings(drain_s=0.0)
    host = Host("gateway", settings)
    async with Mesh(encoder, index, None, settings) as mesh:
        servicer = RetrievalServicer(mesh, settings, host.draining)
        host.add(add_RetrievalServiceServicer_to_server, servicer, NAME)
        await host.start()
        async with open_channel(f"127.0.0.1:{host.port}") as channel:
            yield channel
        await host.server.stop(None)


@pytest.fixture
def stub(gateway) -> RetrievalServiceStub:
    return RetrievalServiceStub(gateway)


@pytest.fixture
def collection() -> str:
    """The name of the collection that the stand-in of the index has."""
    return "photos"


@pytest.fixture
def refusal(refusal) -> Callable[[Awaitable[object]], Awaitable[object]]:
    """Await a call that must fail, and return what the gateway said of it."""

    async def refusal_of(call: Awaitable[object]) -> object:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call

        def again() -> None:
            raise failure.value

        return refusal(again)

    return refusal_of
