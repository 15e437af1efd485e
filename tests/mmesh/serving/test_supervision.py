"""Tasks that fail start again, and are counted, logged once and shown in health."""

import asyncio
import gc
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from mmesh.serving import supervision
from mmesh.serving.backoff import Pauses
from mmesh.serving.host import Host
from mmesh.serving.settings import ServiceSettings
from mmesh.serving.supervision import Supervised

AT_ONCE = Pauses(first_s=0, longest_s=60)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Work:
    """Work that ends as each of `ends` says, and then runs on."""

    def __init__(self, *ends):
        self.ends, self.starts, self.runs = list(ends), 0, asyncio.Event()

    async def __call__(self):
        self.starts += 1
        if self.ends:
            end = self.ends.pop(0)
            if end is not None:
                raise end
            return
        self.runs.set()
        await asyncio.Event().wait()


@pytest.fixture
async def supervise():
    """Start a supervised task; all end with the test."""
    tasks = []

    def start(work, name="worker", **options):
        tasks.append(Supervised(name, work, **{"backoff": AT_ONCE} | options))
        tasks[-1].start()
        return tasks[-1]

    yield start
    for task in tasks:
        await task.aclose()
    assert not supervision.unwell()


def metric(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Panic(BaseException):
    """As what a library in Rust raises."""


ERRORS = [MemoryError("all"), RuntimeError("FAISS"), OSError(28, "disk full"), Panic("bug")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_whatever_ends_the_work_it_starts_again_and_is_counted(supervise, error):
    labels = {"task": "worker", "error": type(error).__name__}
    before = metric("mmesh_task_failures_total", **labels)
    task = supervise(work := Work(error, error))
    await asyncio.wait_for(work.runs.wait(), 5)
    assert (work.starts, task.failures) == (3, 2)
    assert metric("mmesh_task_failures_total", **labels) == before + 2


async def test_the_one_error_of_a_task_group_is_counted_by_its_own_kind(supervise):
    labels = {"task": "worker", "error": "KeyError"}
    before = metric("mmesh_task_failures_total", **labels)
    work = Work(ExceptionGroup("group", [ExceptionGroup("inner", [KeyError()])]))
    supervise(work)
    await asyncio.wait_for(work.runs.wait(), 5)
    assert metric("mmesh_task_failures_total", **labels) == before + 1


async def test_work_that_returns_has_failed(supervise):
    task = supervise(work := Work(None))
    await asyncio.wait_for(work.runs.wait(), 5)
    assert task.failures == 1


async def test_work_that_awaits_something_cancelled_by_others_starts_again(supervise):
    work = Work(asyncio.CancelledError())
    task = supervise(work)
    await asyncio.wait_for(work.runs.wait(), 5)
    assert (work.starts, task.failures) == (2, 1)


async def test_each_kind_of_error_is_logged_once_until_the_work_went_well(supervise, caplog):
    caplog.set_level(logging.INFO)
    work = Work(ValueError("a"), ValueError("b"), OSError("c"), ValueError("d"))
    task = supervise(work)
    await asyncio.wait_for(work.runs.wait(), 5)
    shown = [r.exc_info[0] for r in caplog.records if r.message.startswith("task failed")]
    assert shown == [ValueError, OSError]
    task.progress()
    task.progress()
    assert [r.message for r in caplog.records].count("task has recovered") == 1
    assert task.failures == 0


async def test_a_task_that_fails_again_and_again_is_unwell_until_it_goes_well(supervise):
    def gauge():
        return metric("mmesh_task_unwell", task="worker")

    one = supervise(first := Work(*[ValueError()] * 3), unwell_after=3)
    two = supervise(second := Work(*[ValueError()] * 2), unwell_after=3)
    await asyncio.gather(first.runs.wait(), second.runs.wait())
    assert (one.is_well, two.is_well) == (False, True)
    assert supervision.unwell() == ["worker"]
    assert gauge() == 1
    one.progress()
    assert one.is_well
    assert gauge() == 0


async def test_a_run_as_long_as_the_longest_pause_is_a_recovery(supervise):
    work = Work(ValueError())
    task = supervise(work, unwell_after=1, backoff=Pauses(first_s=0, longest_s=0.01))
    await asyncio.wait_for(work.runs.wait(), 5)
    async with asyncio.timeout(5):
        while task.failures:  # noqa: ASYNC110  # nothing tells but looking
            await asyncio.sleep(0.001)


async def test_closing_ends_the_work_at_once_even_in_a_pause_and_it_is_well(supervise):
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = supervise(work)
    pausing = supervise(Work(ValueError()), backoff=Pauses(60, 60), unwell_after=1)
    await asyncio.sleep(0.01)
    assert not pausing.is_well
    async with asyncio.timeout(5):
        await task.aclose()
        await pausing.aclose()
        await pausing.aclose()
    assert ended.is_set()
    assert metric("mmesh_task_unwell", task="worker") == 0


@pytest.mark.parametrize("end", [None, ValueError("while it ends")], ids=["returns", "raises"])
async def test_work_that_answers_cancellation_otherwise_is_not_started_again(
    supervise, caplog, end
):
    starts = []

    async def work():
        starts.append(1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if end is not None:
                raise end from None

    task = supervise(work, backoff=Pauses(60, 60))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await task.aclose()
    assert len(starts) == 1
    assert ("task ended badly" in caplog.text) == (end is not None)


# -- health


@pytest.fixture
async def host():
    """A host that runs and looks at tasks all the time."""
    host = Host("index", ServiceSettings(drain_s=0, grace_s=0), look_s=0.001)
    await host.start()
    running = asyncio.create_task(host.run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        host.stub = health_pb2_grpc.HealthStub(channel)
        await says(host, SERVING)
        yield host
    host.stop.set()
    await running
    gc.unfreeze()


async def says(host, status, service=""):
    """Wait until the host's health is this."""
    request = health_pb2.HealthCheckRequest(service=service)
    async with asyncio.timeout(5):
        while (await host.stub.Check(request)).status != status:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.001)


async def test_health_follows_tasks_that_are_unwell_and_recover(host, supervise):
    task = supervise(Work(ValueError()), unwell_after=1)
    await says(host, NOT_SERVING)
    task.progress()
    await says(host, SERVING)
    supervise(Work(ValueError()), unwell_after=1)
    await says(host, NOT_SERVING)


async def test_a_service_that_does_not_serve_for_a_cause_of_its_own_stays_so(host, supervise):
    await host.set_serving(False, ["own"])
    task = supervise(Work(ValueError()), unwell_after=1)
    await says(host, NOT_SERVING)
    await host.set_serving(True, ["other"])
    await says(host, NOT_SERVING, "other")
    task.progress()
    await says(host, SERVING)
    await says(host, SERVING, "other")
    await says(host, NOT_SERVING, "own")


async def test_a_drain_is_not_undone_by_a_recovery(host, supervise):
    task = supervise(Work(ValueError()), unwell_after=1)
    await says(host, NOT_SERVING)
    await host._health.enter_graceful_shutdown()
    task.progress()
    await asyncio.sleep(0.02)
    await says(host, NOT_SERVING)
