"""What callers are told names no address, path or line of source, whatever a library said."""

from __future__ import annotations

import re

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mmesh.errors import (
    DataLoss,
    InternalError,
    InvalidField,
    InvalidImage,
    InvalidRequest,
    Unavailable,
)
from mmesh.local.ports import free_port
from mmesh.serving.host import Host
from mmesh.serving.settings import ServiceSettings
from mmesh.wire.errors import LONGEST, problem_to_pb, status_of
from mmesh.wire.transport import open_channel
from services.gateway.rpc import answer_of

INSIDES = [
    "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:7001: refused",
    "failed to connect to all addresses; ipv6:%5B::1%5D:7001: Connection refused",
    "unix:/run/secret.sock: no such file",
    'connection to server at "10.0.3.4", port 5432 failed: FATAL',
    "could not connect: host=db.secret user=secret password=secret dbname=secret",
    "postgresql+psycopg://secret:secret@db.secret/mmesh cannot be opened",
    "Error sending request for url (https://secret.s3.amazonaws.com/b/k?list-type=2)",
    "Error in train at /project/faiss/faiss/impl/ProductQuantizer.cpp:123: Error: 'nx >= k'",
    "[Errno 2] No such file or directory: '/srv/secret/log.db'",
    "cannot identify image file <_io.BytesIO object at 0x7f8a1c0de540>",
    "shard at [fd00::1]:7001 is gone",
]
SECRET = re.compile(r"secret|\d+\.\d+\.\d+\.\d+|7001|::1|0x7f|\.cpp|ipv4|ipv6|unix:/")
HARMLESS = [
    "candidates[0].content.parts[1].image.data is 20971521 bytes; at most 20971520 are allowed",
    "the token 5f0c:250 is of another history",
    "the model hf:Qwen/Qwen3-VL@1a2b is not served; image/png is allowed, 0.5 / 2 is not",
    "no collection is named 'photos' (10:30 at 3/4)",
]


@pytest.mark.parametrize("text", INSIDES)
@pytest.mark.parametrize("cls", [Unavailable, DataLoss, InternalError])
def test_the_words_of_libraries_lose_what_only_the_inside_should_know(text, cls):
    told = status_of(cls(text)).message
    assert not SECRET.search(told)
    assert problem_to_pb(cls(text)).message == told
    assert len(told.split()) > 3


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay_as_they_are(text):
    assert status_of(Unavailable(text)).message == text


@pytest.mark.parametrize("piece", ["1.", "a.", "a", "/a", "[:", "0x", "a:/", "://"])
@pytest.mark.parametrize("cls", [Unavailable, InvalidRequest])
def test_a_long_text_takes_no_longer_than_its_length(piece, cls):
    """The square of it would be a day."""
    assert len(status_of(cls(piece * 1_000_000)).message) <= LONGEST
    assert len(problem_to_pb(cls(piece * 1_000_000)).message) <= LONGEST


def test_of_a_long_text_no_half_address_is_told():
    addresses = " ".join(["ipv4:10.0.0.1:7001"] * 200)
    assert not SECRET.search(status_of(Unavailable(addresses)).message)


def test_what_echoes_a_request_keeps_the_callers_own_paths_but_no_line_of_source():
    own = "names '/photos/a/b.jpg' at https://example.org/a:80 and 10.0.0.1"
    assert status_of(InvalidField("query", own)).message == f"query {own}"
    failure = InvalidImage("query", "is broken: <BytesIO at 0x7f8a1c0de540> at /src/decode.cpp:12")
    status = status_of(failure)
    bad = error_details_pb2.BadRequest()
    assert any(detail.Is(bad.DESCRIPTOR) and detail.Unpack(bad) for detail in status.details)
    for told in (status.message, bad.field_violations[0].description):
        assert not SECRET.search(told)


def test_the_words_of_a_database_driver_are_not_passed_on():
    psycopg = pytest.importorskip("psycopg", reason="PostgreSQL's driver is absent")
    from services.index.log.databases.postgres import Postgres

    said = "connection to server at db.secret failed for user secret"
    told = Postgres.explain(object.__new__(Postgres), psycopg.OperationalError(said))
    assert "secret" not in told.message
    assert "OperationalError" in told.message


async def test_a_service_that_is_not_reached_is_named_and_its_address_is_not():
    address = f"127.0.0.1:{free_port()}"
    async with open_channel(address) as channel:
        asked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        with pytest.raises(Unavailable) as failure:
            await answer_of(asked, "the encoder")
    assert failure.value.message == "the encoder does not answer"
    assert address in str(failure.value.__cause__)  # which the logs have


@pytest.fixture
async def channel():
    host = Host("index", ServiceSettings(host="127.0.0.1", drain_s=0, grace_s=0))
    await host.start()
    await host.set_serving(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        yield channel
    await host.server.stop(0)


GARBAGE = b"\xff\xff\xff\xff\xff garbage"


async def test_garbage_to_health_is_an_invalid_argument(channel):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(GARBAGE, timeout=10)
    assert_is_invalid_argument(failure.value)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("unary_stream", "/grpc.health.v1.Health/Watch"),
        ("stream_stream", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    ],
)
async def test_garbage_to_a_stream_of_health_or_reflection_is_an_invalid_argument(
    channel, kind, method
):
    request = GARBAGE if kind == "unary_stream" else iter([GARBAGE])
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for _ in getattr(channel, kind)(method)(request, timeout=10):
            pass
    assert_is_invalid_argument(failure.value)


def assert_is_invalid_argument(failure: grpc.aio.AioRpcError) -> None:
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the message is not valid protobuf" in failure.details()
    (data,) = [v for k, v in failure.trailing_metadata() if k == "grpc-status-details-bin"]
    assert status_pb2.Status.FromString(data).code == 3


async def test_health_and_reflection_answer_as_before(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=10)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    reflecting = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [one async for one in reflecting.ServerReflectionInfo(iter([asked]), timeout=10)]
    names = {one.name for one in answer.list_services_response.service}
    assert names == {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
