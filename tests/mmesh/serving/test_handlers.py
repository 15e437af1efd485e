"""How calls that their callers give up are counted: late ones are failures, cancelled ones not."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import REGISTRY

from mmesh.serving.handlers import Guarded
from tests.effort import patient

SERVICE = "test.Sleeper"
METHOD = f"/{SERVICE}/Sleep"
CALLS, TIMEOUT_S = 20, 0.3


@pytest.fixture
async def begun() -> asyncio.Event:
    """Set when a call has reached the server."""
    return asyncio.Event()


@pytest.fixture
async def sleep(begun) -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable]:
    """A call to a server that answers after so many seconds as it is sent bytes."""

    async def behaviour(request: bytes, _: object) -> bytes:
        begun.set()
        await asyncio.sleep(len(request))
        return b""

    server = grpc.aio.server()
    handlers = {"Sleep": grpc.unary_unary_rpc_method_handler(behaviour)}
    Guarded(server).add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary(METHOD)
    await server.stop(0)


def counted() -> dict[str, float]:
    """Return the calls so far by code."""
    found = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name == "mmesh_rpc_seconds_count" and sample.labels["method"] == METHOD:
                found[sample.labels["code"]] = sample.value
    return found


async def new_counts(before: dict[str, float], calls: int) -> dict[str, float]:
    """Return the counts since `before` once there are so many: a server ends after its caller."""
    async with asyncio.timeout(patient(5)):
        while sum((now := counted()).values()) < sum(before.values()) + calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return {code: n - before.get(code, 0) for code, n in now.items() if n != before.get(code, 0)}


async def test_a_call_whose_time_ran_out_is_counted_as_such_whoever_notices_first(sleep):
    before, labels = counted(), {"method": METHOD, "reason": "DEADLINE"}
    late = REGISTRY.get_sample_value("mmesh_errors_total", labels) or 0
    async with asyncio.TaskGroup() as group:
        for number in range(CALLS):
            group.create_task(refused(sleep(b"x" * 60, timeout=TIMEOUT_S + number / 1000)))
    assert await new_counts(before, CALLS) == {"DEADLINE_EXCEEDED": CALLS}
    assert REGISTRY.get_sample_value("mmesh_errors_total", labels) == late + CALLS


async def test_a_call_that_is_cancelled_is_not_counted_as_answered(sleep, begun):
    before = counted()
    call = sleep(b"x" * 60, timeout=60)
    async with asyncio.timeout(patient(5)):
        await begun.wait()
    call.cancel()
    assert await new_counts(before, 1) == {"CANCELLED": 1}


@pytest.mark.parametrize("reason", ["CORRUPT_DATA", "STORAGE_FULL"])
async def test_what_an_alert_counts_is_counted_before_it_happens(sleep, reason):
    await sleep(b"")
    labels = {"method": METHOD, "reason": reason}
    assert REGISTRY.get_sample_value("mmesh_errors_total", labels) == 0


async def refused(call: grpc.aio.UnaryUnaryCall) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
