"""The encoder over gRPC: its batches, its queue, and what it does with bad inputs."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2 as pb
from mmesh.api.encoder.v1 import encoder_pb2_grpc as rpc
from mmesh.content import Content, Modality
from mmesh.models.protocol import EncoderInfo, Prepared
from mmesh.serving.batcher import BatchLimits
from mmesh.serving.host import Host
from mmesh.status import error_of
from services.encoder.config import EncoderSettings
from services.encoder.engine import EncoderEngine
from services.encoder.servicer import EncoderServicer


@pytest.fixture(scope="module")
def lite():
    from mmesh.models.lite import load_lite

    return load_lite(threads=1)


class SlowModel:
    """Stands for a model at the protocol's seam: counts what it runs, and runs when it is let."""

    info = EncoderInfo("slow", "slow-1", 2, frozenset({Modality.TEXT}), 100, False)

    def __init__(self):
        self.free = threading.Event()
        self.free.set()
        self.batches = []

    def prepare(self, content, role, instruction):
        return Prepared("text", len(content.text), content.text)

    def forward(self, batch):
        self.batches.append([prepared.payload for prepared in batch])
        assert self.free.wait(10)
        return np.tile(np.float32([0.6, 0.8]), (len(batch), 1))


@asynccontextmanager
async def serving(model, **limits):
    host = Host("encoder", EncoderSettings(drain_s=0, grace_s=1))
    async with EncoderEngine(model, BatchLimits(**limits), 2) as engine:
        name = "mmesh.api.encoder.v1.EncoderService"
        host.add(rpc.add_EncoderServiceServicer_to_server, EncoderServicer(engine), name)
        await host.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{host.port}") as channel:
            yield rpc.EncoderServiceStub(channel)
        await host.drain()


def request(*contents, **more):
    inputs = [pb.Input(content=wire.content_to_pb(content)) for content in contents]
    return pb.EncodeRequest(inputs=inputs, **more)


def texts(*words):
    return request(*(Content.of(word) for word in words))


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)


async def test_a_vector_does_not_depend_on_its_company(lite, pictures):
    contents = [
        Content.of("a cat"),
        Content.of("a long text " * 40),
        Content.of(pictures.png()),
        Content.of(pictures.png(1), "a red square"),
    ]
    async with serving(lite) as stub:
        together = wire.vectors_from_pb((await stub.Encode(request(*contents))).vectors)
        for row, content in zip(together, contents, strict=True):
            alone = wire.vectors_from_pb((await stub.Encode(request(content))).vectors)[0]
            np.testing.assert_allclose(alone, row, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


async def test_a_bad_input_fails_the_call_and_is_named(lite):
    contents = [Content.of("good"), Content.of(b"no picture")]
    async with serving(lite) as stub:
        error = await failure(stub.Encode(request(*contents)))
    assert error.reason == "INVALID_IMAGE"
    assert error.field == "inputs[1].content.parts[0].image.data"


async def test_a_bad_input_is_skipped_when_asked(lite):
    contents = [Content.of("good"), Content.of(b"no picture"), Content.of(""), Content.of("fine")]
    async with serving(lite) as stub:
        reply = await stub.Encode(request(*contents, on_problem=pb.ON_PROBLEM_SKIP))
    rows = wire.vectors_from_pb(reply.vectors)
    assert [(p.input, p.problem.reason) for p in reply.problems] == [
        (1, "INVALID_IMAGE"),
        (2, "INVALID_FIELD"),
    ]
    assert np.linalg.norm(rows, axis=1).round(3).tolist() == [1, 0, 0, 1]


async def test_a_cut_text_is_reported(lite):
    async with serving(lite) as stub:
        reply = await stub.Encode(texts("short", "long " * 500))
    assert list(reply.truncated) == [1]


async def test_equal_content_in_flight_is_computed_once():
    model = SlowModel()
    async with serving(model) as stub:
        replies = await asyncio.gather(*(stub.Encode(texts("same")) for _ in range(8)))
    assert sum(len(batch) for batch in model.batches) < 8
    assert sum(reply.timing.coalesced for reply in replies) > 0


async def test_a_full_queue_is_refused_and_what_waits_is_answered():
    model = SlowModel()
    model.free.clear()
    async with serving(model, max_waiting_cost=10) as stub:
        running = asyncio.ensure_future(stub.Encode(texts("running")))
        while not model.batches:  # noqa: ASYNC110  # set on the device thread
            await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(stub.Encode(texts("waiting")))
        await asyncio.sleep(0.1)
        error = await failure(stub.Encode(texts("too many")))
        model.free.set()
        await asyncio.gather(running, waiting)
    assert error.reason == "QUEUE_FULL"
    assert error.retry_after_s > 0


async def test_work_whose_caller_went_away_never_runs():
    model = SlowModel()
    model.free.clear()
    async with serving(model) as stub:
        running = asyncio.ensure_future(stub.Encode(texts("running")))
        while not model.batches:  # noqa: ASYNC110  # set on the device thread
            await asyncio.sleep(0.01)
        error = await failure(stub.Encode(texts("late"), timeout=0.1))
        model.free.set()
        await running
        await stub.Encode(texts("next"))
    assert (
        error.reason in ("DEADLINE", "DEADLINE_EXCEEDED") or error.code.name == "DEADLINE_EXCEEDED"
    )
    assert model.batches == [["running"], ["next"]]


async def test_a_caller_with_time_left_does_not_share_the_end_of_one_without():
    model = SlowModel()
    model.free.clear()
    async with serving(model) as stub:
        running = asyncio.ensure_future(stub.Encode(texts("running")))
        while not model.batches:  # noqa: ASYNC110  # set on the device thread
            await asyncio.sleep(0.01)
        hurried = asyncio.ensure_future(stub.Encode(texts("same"), timeout=0.2))
        await asyncio.sleep(0.05)
        patient = asyncio.ensure_future(stub.Encode(texts("same"), timeout=10))
        await asyncio.sleep(0.5)
        model.free.set()
        await running
        assert (await patient).vectors.dim == 2
        assert (await failure(hurried)).code.name == "DEADLINE_EXCEEDED"


async def test_an_empty_call_and_an_oversized_one_are_refused(lite):
    async with serving(lite) as stub:
        for words in ([], ["x"] * 257):
            error = await failure(stub.Encode(texts(*words)))
            assert (error.reason, error.field) == ("INVALID_FIELD", "inputs")


async def test_the_model_describes_itself(lite):
    async with serving(lite) as stub:
        model = await stub.GetModel(pb.GetModelRequest())
    assert (model.name, model.dim, model.follows_instructions) == ("lite", 384, False)
    assert {c.query_modality for c in model.calibration} == {1, 2, 3}
