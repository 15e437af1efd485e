"""Pictures that are small and dear, on the way of a reranker: refused, ended, in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from PIL import Image

from mmesh import wire
from mmesh.api.reranker.v1 import reranker_pb2 as pb
from mmesh.api.reranker.v1 import reranker_pb2_grpc as rpc
from mmesh.content import Content, Modality
from mmesh.models import content_threads, images
from mmesh.models.content_threads import ContentThreads
from mmesh.models.judges.maxsim import MaxSimJudge, load_maxsim
from mmesh.models.judges.vllm_engine import Pictures, VllmSettings
from mmesh.models.judges.vllm_judge import JudgeFamily, VllmJudge
from mmesh.models.pictures.pool import DecoderPool
from mmesh.models.protocol import JudgeModel
from mmesh.serving.host import Host
from mmesh.wire.transport import open_channel
from services.reranker.config import RerankerSettings
from services.reranker.engine import RerankerEngine
from services.reranker.servicer import RerankerServicer
from tests.effort import patient
from tests.picture_bombs import encoded, jpeg_with_scans, large, slow


class CountingPool(DecoderPool):
    """Counts what it decodes, tells when it begins, and waits until it may."""

    def __init__(self, **limits: float) -> None:
        super().__init__(1, **limits)  # type: ignore[arg-type]  # as a decoder pool has them
        self.decoded, self.begun, self.may_go = 0, asyncio.Event(), threading.Event()
        self.may_go.set()
        self._loop = asyncio.get_running_loop()

    def decode(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.may_go.wait(10)
        picture = super().decode(*args, **kwargs)  # type: ignore[arg-type]
        self.decoded += 1
        return picture


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CountingPool]:
    """The decoder pool that the judge of the test gets."""
    with CountingPool() as pool:
        monkeypatch.setattr(content_threads, "DecoderPool", lambda: pool)
        yield pool


@asynccontextmanager
async def serving(judge: JudgeModel) -> AsyncIterator[rpc.RerankerServiceStub]:
    host = Host("reranker", RerankerSettings(drain_s=0, grace_s=1))
    engine = RerankerEngine(
        judge, round_candidates=8, running_calls=4, max_waiting=4, score_cache=100
    )
    name = "mmesh.api.reranker.v1.RerankerService"
    host.add(rpc.add_RerankerServiceServicer_to_server, RerankerServicer(engine), name)
    await host.start()
    async with open_channel(f"127.0.0.1:{host.port}") as channel:
        yield rpc.RerankerServiceStub(channel)
    await host.drain()
    await judge.close()


@dataclass(frozen=True)
class Prompt:
    """Ids, and a digest of the pixels that came with them."""

    pixels: bytes
    tokens: int = 1


class Prompts:
    """Builds prompts of nothing."""

    reads_images, candidate_first = True, False

    def build(self, query: Content, instruction: str, candidate: Content) -> list[int]:
        return [0]


class Engine:
    """Stands for vLLM's: it gets what was decoded, and scores it by its digest."""

    has_died, unfinished_requests = False, 0

    async def render(self, ids: Any, pictures: Pictures, path: str) -> Prompt:
        pixels = b"".join(one.tobytes() for one in pictures.decoded)
        return Prompt(hashlib.sha256(pixels).digest())

    def errors(self, path: str) -> Any:
        return contextlib.nullcontext()

    async def shutdown(self) -> None:
        pass


class Route:
    """Scores by pixels."""

    engine_arguments: ClassVar[dict[str, Any]] = {}

    async def score(self, engine: Any, rendered: Any) -> float:
        return rendered.pixels[0] / 255


def mllm() -> VllmJudge:
    parts: Any = (Prompts(), Route())
    tokens: Any = lambda width, height: 1  # noqa: E731
    family = JudgeFamily("fake", 1, *parts, "t@1:abc", dict.fromkeys(Modality, 1.0), True, tokens)
    engine: Any = Engine()
    return VllmJudge(engine, family, family.info("fake", "fake-1"), VllmSettings())


JUDGES: dict[str, Callable[[], MaxSimJudge | VllmJudge]] = {
    "maxsim": lambda: load_maxsim(threads=1),
    "mllm": mllm,
}


@pytest.fixture(params=JUDGES)
def make(request: pytest.FixtureRequest) -> Callable[[], MaxSimJudge | VllmJudge]:
    return JUDGES[request.param]


@pytest.fixture
async def stub(
    pool: CountingPool, make: Callable[[], JudgeModel]
) -> AsyncIterator[rpc.RerankerServiceStub]:
    async with serving(make()) as stub:
        yield stub


def png(side: int) -> bytes:
    return encoded(Image.new("RGB", (side, side), (255, 0, 0)), "PNG")


def request(*parts: str | bytes, query: str | bytes = "a red square") -> pb.RerankRequest:
    candidates = [wire.content_to_pb(Content.of(part)) for part in parts]
    return pb.RerankRequest(query=wire.content_to_pb(Content.of(query)), candidates=candidates)


def outcomes(reply: pb.RerankResponse) -> list[str]:
    return [score.problem or "judged" for score in reply.scores]


async def test_bombs_are_refused_and_what_is_beside_them_is_judged(
    pool: CountingPool, stub: rpc.RerankerServiceStub
) -> None:
    bombs = [
        jpeg_with_scans(5_000, (7000, 7000)),
        jpeg_with_scans(40, (7000, 7000)),
        large()[:-5000],
    ]
    reply = await stub.Rerank(request("a square", *bombs, large()), timeout=patient(30))
    refused = "INVALID_IMAGE"
    assert outcomes(reply) == ["judged", refused, refused, refused, "judged"]


async def test_a_dear_picture_is_decoded_in_a_process_as_it_is_here(
    pool: CountingPool, make: Callable[[], JudgeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, dear = Content.of("a red square"), Content.of(large())
    scores = []
    for work in (images.APART_WORK, 1 << 40):
        monkeypatch.setattr(images, "APART_WORK", work)
        judge = make()
        scores.append(await judge.score(query, "", [dear]))
        await judge.close()
        assert pool.decoded == 1
    assert scores[0] == scores[1]


async def test_a_picture_that_needs_too_much_is_refused_and_the_service_goes_on(
    make: Callable[[], JudgeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    with CountingPool(memory_bytes=100 << 20) as small:
        monkeypatch.setattr(content_threads, "DecoderPool", lambda: small)
        async with serving(make()) as stub:
            reply = await stub.Rerank(request(slow(), "a square"), timeout=patient(30))
            assert outcomes(reply) == ["INVALID_IMAGE", "judged"]


async def test_nobody_waits_for_the_dear_pictures_of_others(
    pool: CountingPool, stub: rpc.RerankerServiceStub
) -> None:
    pool.may_go.clear()
    dear = asyncio.ensure_future(stub.Rerank(request(large()), timeout=patient(60)))
    await asyncio.wait_for(pool.begun.wait(), patient(10))
    for part in ("a text", png(30), png(40)):
        assert outcomes(await stub.Rerank(request(part), timeout=patient(10))) == ["judged"]
    assert not pool.decoded
    pool.may_go.set()
    assert outcomes(await dear) == ["judged"]


async def test_a_caller_who_goes_away_ends_the_decoding(
    pool: CountingPool, stub: rpc.RerankerServiceStub
) -> None:
    call = stub.Rerank(request(slow()), timeout=patient(60))
    await asyncio.wait_for(pool.begun.wait(), patient(10))
    call.cancel()
    reply = await stub.Rerank(request(large()), timeout=patient(30))  # there is one process
    assert outcomes(reply) == ["judged"]
    assert pool.decoded == 1


async def test_what_waits_for_a_thread_when_its_caller_goes_is_not_begun() -> None:
    threads, may_end, begun = ContentThreads(1, "t"), threading.Event(), asyncio.Event()
    done, loop = [], asyncio.get_running_loop()

    def work(number: int) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert may_end.wait(10)
        done.append(number)

    calls = [asyncio.create_task(threads.run((), work, n)) for n in range(3)]
    await begun.wait()
    calls[1].cancel()
    await asyncio.wait([calls[1]])
    may_end.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert done == [0, 2]
    threads.close()
