"""Hostile load: broken inputs by the thousand, callers that give up, processes killed at work.

Every call must come to an end, nothing may be left behind, and the service must be well again
without help.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import struct
import urllib.request
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from mmesh import AsyncClient, wire
from mmesh.api.content.v1 import content_pb2
from mmesh.api.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from mmesh.api.reranker.v1 import reranker_pb2, reranker_pb2_grpc
from mmesh.candidates import Candidate
from mmesh.content import Content
from mmesh.errors import MmeshError
from tests.effort import EFFORT, patient

GIVEN_UP = 60
AT_A_TIME = 32
LONG_S = patient(150.0)
MIB = 1 << 20
SEED = 5


# -- broken contents


def text(value: str) -> content_pb2.Part:
    return content_pb2.Part(text=value)


def picture(data: bytes) -> content_pb2.Part:
    return content_pb2.Part(image=content_pb2.Image(data=data))


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(MIB), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)


class Breaker:
    """Makes contents of which each has something wrong; a seed gives the same ones."""

    def __init__(self, seed: int, pictures: Any) -> None:
        self._random = random.Random(seed)
        self._whole = [pictures.png(seed), pictures.jpeg(seed), pictures.gif(seed)]

    def contents(self, count: int) -> list[content_pb2.Content]:
        kinds = (self._noise, self._cut, self._bomb, self._flipped, self._text, self._parts)
        return [content_pb2.Content(parts=kinds[number % len(kinds)]()) for number in range(count)]

    def _noise(self) -> list[content_pb2.Part]:
        start = self._random.choice([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"])
        return [picture(start + self._random.randbytes(self._random.randrange(1, 4000)))]

    def _cut(self) -> list[content_pb2.Part]:
        whole = self._random.choice(self._whole)
        return [picture(whole[: self._random.randrange(4, len(whole) // 2)])]

    def _bomb(self) -> list[content_pb2.Part]:
        return [picture(png_claiming(self._random.choice([7000, 30_000]), 20_001)), text("boom")]

    def _flipped(self) -> list[content_pb2.Part]:
        data = bytearray(self._whole[0])
        data[self._random.randrange(40, len(data) - 20)] ^= 1 << self._random.randrange(8)
        return [picture(bytes(data))]

    def _text(self) -> list[content_pb2.Part]:
        broken = ["", "  ", "with \0 in it", "x" * (MIB + 1)]
        return [text(self._random.choice(broken))]

    def _parts(self) -> list[content_pb2.Part]:
        return [text("word")] * self._random.choice([0, 17])


# -- what a process holds


@dataclass(frozen=True)
class Holding:
    """What a process and those that it started hold."""

    files: int
    threads: int
    resident: int

    @classmethod
    def of(cls, pid: int) -> Holding:
        found = [Path(f"/proc/{one}") for one in family(pid)]
        pages = sum(int((one / "statm").read_text().split()[1]) for one in found)
        return cls(
            sum(len(os.listdir(one / "fd")) for one in found),
            sum(len(os.listdir(one / "task")) for one in found),
            pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def assert_no_more_than(self, before: Holding) -> None:
        assert self.files <= before.files + AT_A_TIME // 2, (before, self)
        assert self.threads <= before.threads + 8, (before, self)
        assert self.resident <= before.resident + 64 * MIB, (before, self)


def family(pid: int) -> list[int]:
    """Return a process and all that come from it."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


# -- calls


async def gathered(calls: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Return the outcomes of calls, some at a time: an answer, or the code of a failure."""
    free = asyncio.Semaphore(AT_A_TIME)

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        async with free:
            try:
                return await call()
            except grpc.aio.AioRpcError as failure:
                return failure.code()
            except asyncio.CancelledError:
                return grpc.StatusCode.CANCELLED

    async with asyncio.timeout(LONG_S):
        return await asyncio.gather(*map(one, calls))


def given_up(call: Callable[[], Any], after_s: float) -> Callable[[], Awaitable[Any]]:
    """Return the call, cancelled after a while if it is not answered before."""

    async def attempt() -> Any:
        running = call()
        asyncio.get_running_loop().call_later(after_s, running.cancel)
        return await running

    return attempt


@dataclass
class Service:
    """A service under attack."""

    name: str
    mesh: Any
    ask: Callable[[content_pb2.Content], Any]
    """Makes a call with one content beside a good one; returns the call."""
    broken: Callable[[Any], bool]
    """Whether an answer says that the content was broken."""
    waiting: tuple[str, ...]
    """Metrics that are 0 when nothing waits or runs."""

    @property
    def pid(self) -> int:
        return self.mesh.pid(self.name)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        services = json.loads((self.mesh.settings.data / "mesh.json").read_text())["services"]
        with urllib.request.urlopen(f"http://{services[self.name]['metrics']}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        found = re.compile(re.escape(name) + r"(\{.*\})? ")
        values = [float(line.rpartition(" ")[2]) for line in lines if found.match(line)]
        assert values, f"there is no metric {name}"
        return sum(values)

    def is_idle(self) -> bool:
        return not any(map(self.metric, self.waiting))

    async def answer(self, words: str) -> list[float]:
        """Return what it answers to a good text."""
        reply = await self.ask(content_pb2.Content(parts=[text(words)]))
        if isinstance(reply, reranker_pb2.RerankResponse):
            return [judged.score for judged in reply.scores]
        return wire.vectors_from_pb(reply.vectors).ravel().tolist()


@pytest.fixture(scope="module")
def encoder_mesh(start_mesh, tmp_path_factory):
    mesh = start_mesh(tmp_path_factory.mktemp("attacked"), 1, reranker="none", metrics=True)
    yield mesh
    mesh.close()


@pytest_asyncio.fixture
async def encoder(encoder_mesh) -> AsyncIterator[Service]:
    async with grpc.aio.insecure_channel(encoder_mesh.address_of("encoder")) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        good = encoder_pb2.Input(content=wire.content_to_pb(Content.of("a good text")))

        def ask(content: content_pb2.Content) -> Any:
            request = encoder_pb2.EncodeRequest(
                inputs=[good, encoder_pb2.Input(content=content)],
                on_problem=encoder_pb2.ON_PROBLEM_SKIP,
            )
            return stub.Encode(request, timeout=LONG_S)

        yield Service(
            "encoder",
            encoder_mesh,
            ask,
            lambda reply: bool(reply.problems),
            ("mmesh_encoder_waiting_cost",),
        )


@pytest_asyncio.fixture
async def reranker(vllm_mesh) -> AsyncIterator[Service]:
    async with grpc.aio.insecure_channel(vllm_mesh.address_of("reranker")) as channel:
        stub = reranker_pb2_grpc.RerankerServiceStub(channel)
        query, good = (wire.content_to_pb(Content.of(words)) for words in ("red", "a good text"))

        def ask(content: content_pb2.Content) -> Any:
            request = reranker_pb2.RerankRequest(
                query=query, candidates=[good, content], fresh=True
            )
            return stub.Rerank(request, timeout=LONG_S)

        yield Service(
            "reranker",
            vllm_mesh,
            ask,
            lambda reply: bool(reply.scores[1].problem),
            (
                "mmesh_reranker_waiting_calls",
                "vllm:num_requests_running",
                "vllm:num_requests_waiting",
            ),
        )


SERVICES = [
    "encoder",
    pytest.param("reranker", marks=[pytest.mark.vllm, pytest.mark.timeout(400)]),
]


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Service:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("service", SERVICES, indirect=True)
async def test_broken_inputs_are_refused_one_by_one_and_leave_nothing_behind(service, pictures):
    restarts = service.mesh.restarts()
    expected = await service.answer("a witness")
    for seed in (SEED, SEED + 1):  # what stays after the first round is no leak
        held = Holding.of(service.pid)
        contents = Breaker(seed, pictures).contents(EFFORT.broken_inputs)
        outcomes = await gathered(partial(service.ask, content) for content in contents)
        kinds = Counter(
            outcome if isinstance(outcome, grpc.StatusCode) else service.broken(outcome)
            for outcome in outcomes
        )
        assert kinds.keys() <= {grpc.StatusCode.INVALID_ARGUMENT, True, False}, kinds
        assert kinds[False] <= EFFORT.broken_inputs // 50, kinds  # a flipped bit may do no harm
    Holding.of(service.pid).assert_no_more_than(held)
    assert await service.answer("a witness") == pytest.approx(expected, abs=1e-4)
    assert service.mesh.restarts() == restarts


@pytest.mark.parametrize("service", SERVICES, indirect=True)
async def test_messages_that_are_no_protobuf_are_refused(service):
    path = {
        "encoder": "/mmesh.api.encoder.v1.EncoderService/Encode",
        "reranker": "/mmesh.api.reranker.v1.RerankerService/Rerank",
    }[service.name]
    noise = random.Random(SEED)
    async with grpc.aio.insecure_channel(service.mesh.address_of(service.name)) as channel:
        call: Any = channel.unary_unary(path)
        sent = [b"\x0a" + noise.randbytes(noise.randrange(1, 300)) for _ in range(100)]
        outcomes = await gathered(partial(call, data, timeout=LONG_S) for data in sent)
    assert set(outcomes) == {grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize("service", SERVICES, indirect=True)
async def test_calls_that_are_given_up_take_nothing_from_the_others(service, pictures, eventually):
    expected = await service.answer("a witness")
    for seed in (SEED, SEED + 1):  # what stays after the first round is no leak
        held = Holding.of(service.pid)
        kept, others = await half_given_up(service, seed, pictures)
        assert not [one for one in kept if isinstance(one, grpc.StatusCode) or service.broken(one)]
        assert grpc.StatusCode.CANCELLED in others
        eventually(service.is_idle, "nothing is left of calls that were given up")
    Holding.of(service.pid).assert_no_more_than(held)
    assert await service.answer("a witness") == pytest.approx(expected, abs=1e-4)


async def half_given_up(service: Service, seed: int, pictures: Any) -> tuple[list[Any], list[Any]]:
    """Return the outcomes of calls that were waited for, and of as many that were not."""
    noise = random.Random(seed)
    calls: list[Callable[[], Awaitable[Any]]] = []
    for number in range(GIVEN_UP):
        words = text(f"text {number} " * noise.randrange(1, 40))
        content = content_pb2.Content(parts=[words, picture(pictures.png(seed * 1000 + number))])
        call = partial(service.ask, content)
        calls += [call, given_up(call, noise.uniform(0, 0.2))]
    outcomes = await gathered(calls)
    return outcomes[::2], outcomes[1::2]


class Load:
    """Callers that ask again and again, until told to stop; outcomes are kept."""

    def __init__(self, *asks: Callable[[int], Awaitable[Any]]) -> None:
        self.outcomes: list[Any] = []
        self._asks = asks
        self._over = False

    async def __aenter__(self) -> Load:
        self._callers = [asyncio.create_task(self._call(ask)) for ask in self._asks * 4]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        async with asyncio.timeout(LONG_S):
            await asyncio.gather(*self._callers)

    async def _call(self, ask: Callable[[int], Awaitable[Any]]) -> None:
        while not self._over:
            try:
                self.outcomes.append(await ask(len(self.outcomes)))
            except grpc.aio.AioRpcError as failure:
                self.outcomes.append(failure.code())
            except MmeshError as error:
                self.outcomes.append(error)
            await asyncio.sleep(0.1)

    async def goes_on(self, count: int = 30) -> None:
        """Return when so many more calls have come to an end."""
        wanted = len(self.outcomes) + count
        async with asyncio.timeout(LONG_S):
            while len(self.outcomes) < wanted:  # noqa: ASYNC110  # as simple as it gets
                await asyncio.sleep(0.02)


def answered(codes: Iterable[Any]) -> Counter[Any]:
    """Count the codes of failures; answers count as OK."""
    return Counter(c if isinstance(c, grpc.StatusCode) else grpc.StatusCode.OK for c in codes)


async def test_an_encoder_that_is_killed_at_work_is_unavailable_and_comes_back(encoder):
    expected = await encoder.answer("a witness")

    async def ask(number: int) -> Any:
        return await encoder.ask(content_pb2.Content(parts=[text(f"text {number}")]))

    async with Load(ask) as load:
        await load.goes_on()
        encoder.mesh.kill("encoder")
        await load.goes_on()
        await asyncio.to_thread(encoder.mesh.wait_serving, "encoder")
        await load.goes_on()
    codes = answered(load.outcomes)
    assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, codes
    again = await reconnected(lambda: encoder.answer("a witness"))
    np.testing.assert_allclose(again, expected, atol=1e-5)


async def reconnected(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the channel has noticed that there is a server again."""
    async with asyncio.timeout(patient(20)):
        while True:
            with suppress(grpc.aio.AioRpcError):
                return await ask()
            await asyncio.sleep(0.05)


@pytest.mark.vllm
@pytest.mark.timeout(400)
async def test_an_engine_that_is_killed_at_work_costs_its_say_and_comes_back(reranker, eventually):
    """Its own callers hear UNAVAILABLE at once; searches go on in first-stage order and say so."""
    mesh, expected = reranker.mesh, await reranker.answer("a witness")
    restarts, old = mesh.restarts(), family(mesh.pid("reranker"))
    async with AsyncClient(mesh.address) as client:
        await client.create_collection("attacked")
        candidates = [Candidate(f"text-{n}", Content.of(f"red square {n}")) for n in range(10)]
        token = (await client.upsert_candidates("attacked", candidates)).token

        async def ask(number: int) -> Any:
            return await reranker.ask(content_pb2.Content(parts=[text(f"text {number}")]))

        async def search(number: int) -> Any:
            found = await client.search("attacked", f"query {number}", token=token, timeout=60)
            return [degradation.message for degradation in found.degradations]

        async with Load(ask, search) as load:
            await load.goes_on()
            for pid in old[1:]:
                os.kill(pid, signal.SIGKILL)
            await load.goes_on(60)
            await asyncio.to_thread(mesh.wait_serving, "reranker")
            await load.goes_on()
        async with asyncio.timeout(patient(20)):
            while await search(-1):  # noqa: ASYNC110  # until the gateway has noticed
                await asyncio.sleep(0.05)
        await client.delete_collection("attacked")

    assert not [one for one in load.outcomes if isinstance(one, MmeshError)]
    codes = answered(load.outcomes)
    assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, codes
    said = {message for one in load.outcomes if isinstance(one, list) for message in one}
    assert any("the reranker does not answer" in message for message in said), said
    assert not [message for message in said if "its time ran out" in message]
    assert mesh.restarts() == restarts | {"reranker": restarts["reranker"] + 1}
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in old), "the old ones end")
    again = await reconnected(lambda: reranker.answer("a witness"))
    assert again == pytest.approx(expected, abs=1e-4)
