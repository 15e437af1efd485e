"""Attacks on a gateway by legal means; a process of its own, so that no polite caller waits for it.

    python benchmarks/attacks.py NAME ADDRESS SECONDS

prints how often the server gave which answer, and how soon, as JSON.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
from PIL import Image

from mmesh import wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.content import Content
from mmesh.wire.errors import error_of
from mmesh.wire.transport import open_channel

COLLECTION = "polite"
CALLERS, PAUSE_S = 4, 0.1
"""Callers at a time, and what each pauses between two calls: what one call costs counts here, not
how many there are."""
DEADLINE_S = 5.0
STREAMS = 500
CANCELLED_AT_A_TIME, CANCEL_PAUSE_S = 50, 1.0
FACTORIES = (
    "HNSW0", "HNSW1", "IVF4_HNSW0,Flat", "RR0,Flat", "RR1048576,Flat", "PCA385,Flat",
    "ITQ1048576,SQ8", "OPQ0,Flat", "OPQ5,Flat", "PQ8x4fs_1000000", "OPQ1_1048576,Flat", "PCA0,Flat",
)  # fmt: skip

Call = Callable[[rpc.RetrievalServiceStub, int], Awaitable[Any]]


@dataclass
class Answers:
    """What the server said."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    async def note(self, call: Awaitable[Any]) -> None:
        """Wait for a call and note its outcome."""
        start = time.perf_counter()
        try:
            await call
            outcome = "OK"
        except grpc.aio.AioRpcError as failure:
            outcome = f"{failure.code().name} {error_of(failure).reason}"
        except asyncio.CancelledError:
            outcome = "cancelled"
        self.counts[outcome] += 1
        self.seconds.append(time.perf_counter() - start)

    def as_json(self) -> str:
        """Return the counts and the median."""
        seconds = float(np.median(self.seconds)) if self.seconds else 0.0
        return json.dumps({"answers": dict(self.counts.most_common()), "median_s": seconds})


# -- what is sent


def progressive(scans: int, side: int) -> bytes:
    """Return a JPEG that says it has so many pixels, with scans of a few bytes."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    data = data[:-2] + data[last:-2] * scans + data[-2:]
    frame = data.index(b"\xff\xc2")
    return data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 :]


def huge_picture() -> bytes:
    """Return a small file of 49 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 7000), "red").save(buffer, "PNG")
    return buffer.getvalue()


def with_comment(data: bytes, number: int) -> bytes:
    """Return the picture as another file."""
    return data + number.to_bytes(8)


def members(first: int, count: int = 4096) -> filter_pb2.Filter:
    """Return a set of integers as a filter."""
    values = [filter_pb2.AttributeValue(integer_value=first + n) for n in range(count)]
    return filter_pb2.Filter(**{"in": filter_pb2.Membership(attribute="year", values=values)})


def search(**more: Any) -> pb.SearchRequest:
    """Return a search for a word."""
    query = wire.content_to_pb(more.pop("query", Content.of("word")))
    return pb.SearchRequest(collection=COLLECTION, query=query, **more)


def picture_calls(data: bytes) -> Call:
    """Write and search with a picture, in turns."""

    async def call(stub: rpc.RetrievalServiceStub, number: int) -> Any:
        content = Content.of(with_comment(data, number))
        if number % 2:
            return await stub.Search(search(query=content), timeout=DEADLINE_S)
        parts = wire.content_to_pb(content)
        one = candidate_pb2.Candidate(id=f"bomb-{number}", content=parts)
        request = pb.UpsertCandidatesRequest(collection=COLLECTION, candidates=[one])
        return await stub.UpsertCandidates(request, timeout=DEADLINE_S)

    return call


def filter_calls() -> Call:
    """Search with too large a filter, with the largest, and with many of the largest."""
    many = filter_pb2.Filter(any_of=filter_pb2.FilterList(filters=[members(0)] * 255))
    requests = [search(filter=many), search(filter=members(0))]
    batch = pb.SearchBatchRequest(searches=[search(filter=members(n)) for n in range(64)])

    async def call(stub: rpc.RetrievalServiceStub, number: int) -> Any:
        if number % 3 == 2:
            return await stub.SearchBatch(batch, timeout=DEADLINE_S)
        return await stub.Search(requests[number % 3], timeout=DEADLINE_S)

    return call


def instruction_calls() -> Call:
    """Search with 4 KB of instruction, of many words."""
    texts = ["find " * 800, "find image" + " " * 4000, "retrieve a the an of " * 190]

    async def call(stub: rpc.RetrievalServiceStub, number: int) -> Any:
        instruction = texts[number % 3][:4080] + str(number)
        return await stub.Search(search(instruction=instruction), timeout=DEADLINE_S)

    return call


async def unbuildable(stub: rpc.RetrievalServiceStub, number: int) -> Any:
    """Create a collection that no builder can build."""
    settings = {"index_factory": FACTORIES[number % len(FACTORIES)]}
    request = pb.CreateCollectionRequest(name=f"bad-{number}", settings=settings)
    return await stub.CreateCollection(request, timeout=6 * DEADLINE_S)


# -- how it is sent


async def repeated(call: Call, callers: int, address: str, until: float) -> Answers:
    """Let callers repeat a call."""
    answers, numbers = Answers(), itertools.count()

    async def caller() -> None:
        async with open_channel(address) as channel:
            stub = rpc.RetrievalServiceStub(channel)
            while time.monotonic() < until:
                await answers.note(call(stub, next(numbers)))
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return answers


async def idle_streams(address: str, until: float) -> Answers:
    """Open streams that send nothing more."""
    answers = Answers()

    async def requests(number: int) -> AsyncIterator[pb.IngestRequest]:
        opened = pb.IngestOpen(collection=COLLECTION, ingest_id=f"idle-{number}")
        yield pb.IngestRequest(open=opened)
        await asyncio.sleep(max(0.0, until - time.monotonic()))

    async def stream(stub: rpc.RetrievalServiceStub, number: int) -> None:
        async for _ in stub.Ingest(requests(number)):
            pass

    async with open_channel(address) as channel:
        stub = rpc.RetrievalServiceStub(channel)
        await asyncio.gather(*(answers.note(stream(stub, n)) for n in range(STREAMS)))
    return answers


async def cancel_storm(address: str, until: float) -> Answers:
    """Begin searches and cancel them soon."""
    answers, numbers = Answers(), itertools.count()

    async def caller(stub: rpc.RetrievalServiceStub) -> None:
        while time.monotonic() < until:
            number = next(numbers)
            call = stub.Search(search(query=Content.of(f"text {number} " * 20)), timeout=DEADLINE_S)
            asyncio.get_running_loop().call_later(0.01 + number % 7 * 0.005, call.cancel)
            await answers.note(_outcome(call))
            await asyncio.sleep(CANCEL_PAUSE_S)

    async with open_channel(address) as channel:
        stub = rpc.RetrievalServiceStub(channel)
        await asyncio.gather(*(caller(stub) for _ in range(CANCELLED_AT_A_TIME)))
    return answers


async def _outcome(call: Any) -> Any:
    return await call


Attack = Callable[[str, float], Awaitable[Answers]]
"""Attacks an address until a moment."""
ATTACKS: dict[str, Callable[[], Attack]] = {
    "scan bombs": lambda: partial(repeated, picture_calls(progressive(1500, 7000)), CALLERS),
    "huge pictures": lambda: partial(repeated, picture_calls(huge_picture()), CALLERS),
    "filter bombs": lambda: partial(repeated, filter_calls(), CALLERS),
    "instruction bombs": lambda: partial(repeated, instruction_calls(), CALLERS),
    "500 idle streams": lambda: idle_streams,
    "cancel storm": lambda: cancel_storm,
    "unbuildable collections": lambda: partial(repeated, unbuildable, 1),
}
"""What prepares each."""


async def main() -> None:
    """Run the attack that the arguments name."""
    name, address, seconds = sys.argv[1:]
    attack = ATTACKS[name]()
    print("ready", flush=True)
    answers = await attack(address, time.monotonic() + float(seconds))
    print(answers.as_json())


if __name__ == "__main__":
    asyncio.run(main())
