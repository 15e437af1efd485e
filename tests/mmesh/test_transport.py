"""Channels: what they know of an address, and calls that a server ends as it shuts down."""

from collections import Counter
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mmesh import AsyncClient, Candidate, Content
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.errors import Code, MmeshError, Unavailable, Unimplemented
from mmesh.local.ports import free_port
from mmesh.wire import problem_from_pb, problem_to_pb
from mmesh.wire.errors import DETAILS_KEY
from mmesh.wire.transport import open_channel


@asynccontextmanager
async def healthy_server(port: int):
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield
    await server.stop(None)


def check(channel):
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


async def test_a_new_channel_does_not_wait_until_an_old_one_tries_again():
    port = free_port()
    async with open_channel(f"127.0.0.1:{port}") as old, open_channel(f"127.0.0.1:{port}") as new:
        async with healthy_server(port):
            await check(old)
        with pytest.raises(grpc.aio.AioRpcError):
            await check(old)
        async with healthy_server(port):
            await check(new)


class ShuttingDown(rpc.RetrievalServiceServicer):
    """Ends the first calls as gRPC does with those that reach a server in its last moment."""

    def __init__(self, ended: int) -> None:
        self.ended, self.calls = ended, 0

    async def GetStatus(self, request, context):
        self.calls += 1
        if self.calls <= self.ended:
            await context.abort(grpc.StatusCode.CANCELLED)
        return pb.GetStatusResponse()


@asynccontextmanager
async def client_of(servicer):
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    rpc.add_RetrievalServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        yield client
    await server.stop(None)


async def test_a_call_that_a_server_cancels_is_made_again():
    servicer = ShuttingDown(1)
    async with client_of(servicer) as client:
        await client.get_status()
    assert servicer.calls == 2


class Proxy(rpc.RetrievalServiceServicer):
    """Answers what something between a client and the mesh may answer."""

    def __init__(self, code, details=b"") -> None:
        self.code, self.details = code, details

    async def GetStatus(self, request, context):
        trailing = ((DETAILS_KEY, self.details),) if self.details else ()
        await context.abort(self.code, "says the proxy", trailing)


@pytest.mark.parametrize("code", ["UNKNOWN", "PERMISSION_DENIED", "UNAUTHENTICATED", "ABORTED"])
async def test_a_code_that_mmesh_has_no_class_for_is_kept(code):
    async with client_of(Proxy(grpc.StatusCode[code])) as client:
        with pytest.raises(MmeshError, match="says the proxy") as failure:
            await client.get_status()
    error = failure.value
    assert (type(error), error.code, error.reason) == (MmeshError, Code[code], code)
    again = problem_from_pb(problem_to_pb(error))
    assert (type(again), vars(again)) == (MmeshError, vars(error))


def status_with(kind: str, value: bytes) -> bytes:
    details = [{"type_url": f"type.googleapis.com/google.rpc.{kind}", "value": value}]
    return status_pb2.Status(details=details).SerializeToString()


LONGEST_PAUSE = error_details_pb2.RetryInfo(retry_delay={"seconds": (1 << 63) - 1})


@pytest.mark.parametrize(
    "details",
    [
        b"\xff\xff\xff",
        status_with("ErrorInfo", b"\xff\xff\xff"),
        status_with("RetryInfo", b"\xff\xff\xff"),
        status_with("RetryInfo", LONGEST_PAUSE.SerializeToString()),
    ],
)
async def test_details_that_nobody_can_read_are_left_out(details):
    async with client_of(Proxy(grpc.StatusCode.UNIMPLEMENTED, details)) as client:
        with pytest.raises(Unimplemented, match="says the proxy"):
            await client.get_status()


class AwayForAMoment(rpc.RetrievalServiceServicer):
    """Cannot take the first call of each kind."""

    def __init__(self) -> None:
        self.calls = Counter()

    async def Search(self, request, context):
        await self.take("search", context)
        return pb.SearchResponse()

    async def UpsertCandidates(self, request, context):
        await self.take("upsert", context)
        return pb.UpsertCandidatesResponse()

    async def take(self, name, context):
        self.calls[name] += 1
        if self.calls[name] == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("mib", [1, 12])
async def test_calls_with_large_pictures_are_made_again_as_well(mib):
    servicer, picture = AwayForAMoment(), bytes(mib << 20)
    async with client_of(servicer) as client:
        await client.search("c", picture)
        await client.upsert_candidates("c", [Candidate("a", Content.of(picture))])
    assert servicer.calls == {"search": 2, "upsert": 2}


async def test_calls_that_are_always_cancelled_are_those_of_a_server_that_is_away():
    async with client_of(ShuttingDown(100)) as client:
        with pytest.raises(Unavailable, match="shutting down"):
            await client.get_status()
