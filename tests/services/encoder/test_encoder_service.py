"""The encoder over gRPC: its batches, its queue, and what it does with bad inputs."""

import asyncio
import threading
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2 as pb
from mmesh.api.encoder.v1 import encoder_pb2_grpc as rpc
from mmesh.api.vector.v1 import vector_pb2
from mmesh.content import Content, Modality, Role
from mmesh.errors import DeadlineExceeded
from mmesh.models.protocol import EncoderInfo, OutOfDeviceMemory, Prepared
from mmesh.serving.batching.backlog import BatchShape, Priority
from mmesh.serving.batching.batcher import BatchLimits
from mmesh.serving.deadline import Deadline
from mmesh.serving.host import Host
from mmesh.wire.errors import error_of
from mmesh.wire.transport import open_channel
from services.encoder import metrics
from services.encoder.config import EncoderSettings
from services.encoder.engine import EncoderEngine
from services.encoder.preparation import MOST_LARGE, EncodeOptions, is_large
from services.encoder.servicer import EncoderServicer
from tests.effort import patient


@pytest.fixture(scope="module")
def lite():
    from mmesh.models.encoders.lite import load_lite

    return load_lite(threads=1)


class SlowModel:
    """Stands for a model at the protocol's seam: counts what it runs, and runs when it is let."""

    info = EncoderInfo("slow", "slow-1", 2, frozenset({Modality.TEXT}), 100, False)

    def __init__(self, fits=100):
        self.fits = fits
        self.free = threading.Event()
        self.free.set()
        self.batches, self.prepared = [], []

    def prepare(self, content, role, instruction):
        self.prepared.append(content.text)
        return Prepared("text", len(content.text), content.text)

    def collate(self, batch):
        return [prepared.payload for prepared in batch]

    def forward(self, batch):
        if len(batch) > self.fits:
            raise OutOfDeviceMemory
        self.batches.append(batch)
        assert self.free.wait(10)
        return np.tile(np.float32([0.6, 0.8]), (len(batch), 1))


@asynccontextmanager
async def serving(*models, limits=None, **more):
    host = Host("encoder", EncoderSettings(drain_s=0, grace_s=1))
    async with EncoderEngine(models, limits or BatchLimits(), **more) as engine:
        name = "mmesh.api.encoder.v1.EncoderService"
        host.add(rpc.add_EncoderServiceServicer_to_server, EncoderServicer(engine), name)
        await host.start()
        async with open_channel(f"127.0.0.1:{host.port}") as channel:
            yield rpc.EncoderServiceStub(channel)
        await host.drain()


def request(*contents, **more):
    inputs = [pb.Input(content=wire.content_to_pb(content)) for content in contents]
    return pb.EncodeRequest(inputs=inputs, **more)


def texts(*words):
    return request(*(Content.of(word) for word in words))


async def running(stub, model):
    """Return a call that keeps the model's device busy until it is let go."""
    model.free.clear()
    call = asyncio.ensure_future(stub.Encode(texts("running")))
    while not model.batches:  # noqa: ASYNC110  # set on the device thread
        await asyncio.sleep(0.01)
    return call


def waiting():
    return REGISTRY.get_sample_value("mmesh_encoder_waiting_cost")


async def until(holds):
    async with asyncio.timeout(patient(5)):
        while not holds():  # noqa: ASYNC110  # a metric
            await asyncio.sleep(0.01)


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


async def test_a_long_text_is_refused_when_asked(lite):
    async with serving(lite) as stub:
        asked = texts("short", "long " * 500)
        asked.on_long_text = pb.ON_LONG_TEXT_REFUSE
        error = await failure(stub.Encode(asked))
        assert (error.reason, error.field) == ("INPUT_TOO_LONG", "inputs[1].content")
        asked.on_problem = pb.ON_PROBLEM_SKIP
        reply = await stub.Encode(asked)
    assert [(p.input, p.problem.reason) for p in reply.problems] == [(1, "INPUT_TOO_LONG")]


async def test_an_input_dearer_than_allowed_is_refused(lite, pictures):
    content = Content.of(*(pictures.png(n) for n in range(3)))
    async with serving(lite, max_input_cost=100) as stub:
        error = await failure(stub.Encode(request(content)))
    assert (error.reason, error.field) == ("INPUT_TOO_LONG", "inputs[0].content")


@pytest.mark.parametrize(
    ("data_type", "loss"),
    [("FLOAT16", 1e-3), ("INT8", 4e-3), ("FLOAT32", 1e-7), ("UNSPECIFIED", 1e-7)],
)
async def test_vectors_travel_as_asked(lite, data_type, loss):
    async with serving(lite) as stub:
        exact = wire.vectors_from_pb((await stub.Encode(texts("a cat"))).vectors)
        asked = texts("a cat")
        asked.data_type = getattr(vector_pb2, f"DATA_TYPE_{data_type}")
        vectors = (await stub.Encode(asked)).vectors
    assert vectors.data_type == (asked.data_type or vector_pb2.DATA_TYPE_FLOAT32)
    np.testing.assert_allclose(wire.vectors_from_pb(vectors), exact, atol=loss)


async def test_what_the_device_cannot_hold_is_split_and_in_the_end_refused():
    model = SlowModel(fits=2)
    async with serving(model) as stub:
        reply = await stub.Encode(texts("aa", "bb", "cc", "dd"))
        assert reply.timing.batch_size == 2
        model.fits = 0
        error = await failure(stub.Encode(texts("ee")))
    assert (error.reason, error.field) == ("INPUT_TOO_LONG", "inputs[0].content")


async def test_several_devices_work_at_a_time():
    models = [SlowModel(), SlowModel()]
    async with serving(*models, limits=BatchLimits(BatchShape(max_items=1))) as stub:
        for model in models:
            model.free.clear()
        calls = [asyncio.ensure_future(stub.Encode(texts(word))) for word in ("one", "two")]
        while not all(model.batches for model in models):  # noqa: ASYNC110  # on the device threads
            await asyncio.sleep(0.01)
        for model in models:
            model.free.set()
        await asyncio.gather(*calls)


async def test_equal_content_in_flight_is_computed_once():
    model = SlowModel()
    before = metrics.coalesced_total._value.get()
    async with serving(model) as stub:
        busy = await running(stub, model)
        same = [asyncio.ensure_future(stub.Encode(texts("same"))) for _ in range(8)]
        while metrics.coalesced_total._value.get() < before + 7:  # noqa: ASYNC110  # a counter
            await asyncio.sleep(0.01)
        model.free.set()
        replies = await asyncio.gather(busy, *same)
    assert model.batches == [["running"], ["same"]]
    assert sum(reply.timing.coalesced for reply in replies) == 7


async def test_a_full_queue_is_refused_and_what_waits_is_answered():
    model = SlowModel()
    async with serving(model, limits=BatchLimits(max_waiting_cost=10)) as stub:
        busy = await running(stub, model)
        queued = asyncio.ensure_future(stub.Encode(texts("waiting")))
        await until(waiting)
        error = await failure(stub.Encode(texts("too many")))
        model.free.set()
        await asyncio.gather(busy, queued)
    assert error.reason == "QUEUE_FULL"
    assert error.retry_after_s > 0


async def test_work_whose_caller_went_away_never_runs():
    model = SlowModel()
    async with serving(model) as stub:
        busy = await running(stub, model)
        late = asyncio.ensure_future(stub.Encode(texts("late"), timeout=patient(0.3)))
        await until(waiting)
        error = await failure(late)
        await until(lambda: not waiting())
        model.free.set()
        await busy
        await stub.Encode(texts("next"))
    assert (
        error.reason in ("DEADLINE", "DEADLINE_EXCEEDED") or error.code.name == "DEADLINE_EXCEEDED"
    )
    assert model.batches == [["running"], ["next"]]


async def test_a_caller_with_time_left_does_not_share_the_end_of_one_without():
    model = SlowModel()
    async with serving(model) as stub:
        busy = await running(stub, model)
        hurried = asyncio.ensure_future(stub.Encode(texts("same"), timeout=0.2))
        await asyncio.sleep(0.05)
        calm = asyncio.ensure_future(stub.Encode(texts("same"), timeout=patient(10)))
        await asyncio.sleep(0.5)
        model.free.set()
        await busy
        assert (await calm).vectors.dim == 2
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


async def test_an_input_nobody_waits_for_any_more_is_not_even_prepared():
    model = SlowModel()
    first = threading.Event()

    def prepare(content, role, instruction):
        assert first.wait(10)
        return SlowModel.prepare(model, content, role, instruction)

    model.prepare = prepare
    async with serving(model, prepare_threads=1) as stub:
        long = texts(*(f"{word} " * 3000 for word in ("one", "two", "three")))
        await failure(stub.Encode(long, timeout=patient(0.3)))
        first.set()
        await stub.Encode(texts("next"))
    assert {text.split()[0] for text in model.prepared} == {"one", "next"}
    assert model.batches == [["next"]]


@pytest.mark.parametrize(("words", "on_a_thread"), [(1, False), (2000, True)])
async def test_only_short_queries_are_prepared_on_the_event_loop(words, on_a_thread):
    model, threads = SlowModel(), []

    def prepare(content, role, instruction):
        threads.append(threading.current_thread())
        return SlowModel.prepare(model, content, role, instruction)

    model.prepare = prepare
    async with serving(model, max_input_cost=100_000) as stub:
        await stub.Encode(texts("word " * words))
    assert [one is not threading.current_thread() for one in threads] == [on_a_thread]


LONG = [(Content.of(f"{number} " * 2000), "") for number in range(10, 70)]


async def long_call(engine, model, priority):
    """Return a call of more than may wait, on a device that is busy."""
    model.free.clear()
    options = EncodeOptions(Role.QUERY, priority, Deadline.after(60))
    call = asyncio.create_task(engine.encode(LONG, options))
    await until(lambda: model.batches and len(model.prepared) > 4)
    await asyncio.sleep(0.2)  # time in which more would be prepared
    assert len(model.prepared) < len(LONG) / 2
    return call


FEW = BatchLimits(max_waiting_cost=40_000)


@pytest.mark.parametrize("priority", list(Priority))
async def test_no_more_of_a_call_is_prepared_than_may_wait(priority):
    model = SlowModel()
    async with EncoderEngine([model], FEW) as engine:
        call = await long_call(engine, model, priority)
        model.free.set()
    assert len((await call)[0]) == len(LONG)
    assert not engine._batcher.waiting_cost


async def test_a_call_that_waits_for_room_leaves_none_taken_when_it_is_cancelled():
    model = SlowModel()
    async with EncoderEngine([model], FEW) as engine:
        call = await long_call(engine, model, Priority.BULK)
        call.cancel()
        await until(lambda: not engine._batcher.waiting_cost and not engine._feeding)
        model.free.set()
        options = EncodeOptions(Role.QUERY, Priority.BULK, Deadline.after(60))
        assert len((await engine.encode(LONG, options))[0]) == len(LONG)


class Panic(BaseException):
    """As what a library in Rust raises."""


FAILURES = [ValueError(), StopIteration(), Panic(), SystemExit(1), CancelledError()]


class FailingModel(SlowModel):
    """Fails with `error` where a text says so."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def prepare(self, content, role, instruction):
        if content.text == "bad prepare":
            raise self.error
        if content.text == "without group":
            return SimpleNamespace(truncated=False, cost=1)
        return Prepared("text", 1, content.text)

    def collate(self, batch):
        if any(prepared.payload == "bad collate" for prepared in batch):
            raise self.error
        return super().collate(batch)

    def forward(self, batch):
        if "bad forward" in batch:
            raise self.error
        return super().forward(batch)


@pytest.mark.parametrize("priority", [pb.PRIORITY_INTERACTIVE, pb.PRIORITY_BULK])
@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_whatever_fails_in_preparation_fails_its_call_and_keeps_no_room(error, priority):
    async with serving(FailingModel(error)) as stub:
        for words in (("bad prepare", "good"), ("good", "without group", "better")):
            bad = request(*map(Content.of, words), priority=priority)
            assert (await failure(stub.Encode(bad, timeout=patient(5)))).code.name == "INTERNAL"
        assert not waiting()
        good = request(Content.of("good"), priority=priority)
        await stub.Encode(good, timeout=patient(5))


@pytest.mark.parametrize("words", ["bad collate", "bad forward"])
@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_whatever_fails_on_a_device_fails_its_batch_alone(error, words):
    async with serving(FailingModel(error)) as stub:
        bad = stub.Encode(texts(words), timeout=patient(5))
        assert (await failure(bad)).code.name == "INTERNAL"
        await stub.Encode(texts("good"), timeout=patient(5))


class PictureModel(SlowModel):
    """Reads pictures by their headers; those of large ones wait until they are let."""

    info = EncoderInfo("slow", "slow-1", 2, frozenset({Modality.TEXT, Modality.IMAGE}), 100, False)

    def __init__(self):
        super().__init__()
        self.large_may_go = threading.Event()

    def prepare(self, content, role, instruction):
        if is_large(content):
            assert self.large_may_go.wait(10)
        return Prepared("image", 1, content.digest())


def picture(number, side):
    """Return the header of a PNG; what is behind it makes it another picture."""
    size = side.to_bytes(4) * 2
    return Content.of(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + size + number.to_bytes(4))


async def test_nobody_waits_for_the_large_pictures_of_others():
    model = PictureModel()
    async with serving(model, prepare_threads=1) as stub:
        bulk = pb.PRIORITY_BULK
        large = [stub.Encode(request(picture(n, 3000), priority=bulk)) for n in range(4)]
        for number in range(4):
            await stub.Encode(request(picture(number, 300), priority=bulk), timeout=patient(5))
        assert not any(call.done() for call in large)
        model.large_may_go.set()
        await asyncio.gather(*large)


async def test_calls_with_large_pictures_are_refused_when_enough_of_them_wait():
    model = PictureModel()
    async with serving(model, prepare_threads=1) as stub:
        many = stub.Encode(request(*(picture(n, 3000) for n in range(MOST_LARGE))))
        while (error := await refusal_or_none(stub, 3000)) is None:
            pass
        assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 0.5)
        await stub.Encode(request(picture(0, 300)), timeout=patient(5))
        model.large_may_go.set()
        await many
        await stub.Encode(request(picture(99, 3000)), timeout=patient(5))


async def refusal_or_none(stub, side):
    """Return why a picture is refused; None if it waits."""
    try:
        await stub.Encode(request(picture(1000, side)), timeout=0.1)
    except grpc.aio.AioRpcError as refused:
        error = error_of(refused)
    return None if isinstance(error, DeadlineExceeded) else error


async def test_a_call_that_fails_leaves_no_work_behind():
    model = SlowModel()
    async with serving(model) as stub:
        busy = await running(stub, model)
        mixed = request(Content.of("good"), Content.of(b"a picture"))
        assert (await failure(stub.Encode(mixed))).field == "inputs[1].content"
        model.free.set()
        await busy
        await stub.Encode(texts("next"))
    assert model.batches == [["running"], ["next"]]


async def test_calls_that_are_cancelled_in_flight_leave_nothing_behind(lite):
    async with EncoderEngine([lite], BatchLimits()) as engine:

        async def call(number):
            inputs = [(Content.of(f"text {number % 7} {n}"), "") for n in range(8)]
            priority = Priority(number % 2)
            options = EncodeOptions(Role.QUERY, priority, Deadline.after(30))
            return await engine.encode(inputs, options)

        calls = [asyncio.create_task(call(number)) for number in range(60)]
        for number, one in enumerate(calls):
            await asyncio.sleep(0.002)
            if number % 2:
                one.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(len(found) == 8 for found, _ in results[::2])
        assert len((await call(99))[0]) == 8
        assert not engine._coalescer._tickets
        assert engine._batcher.waiting_cost == 0
        assert not engine._feeding
