"""Every class of mmesh.errors over a real server: what travels, and what comes back."""

from __future__ import annotations

import copy
import pickle
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.errors import (
    DOMAIN,
    Code,
    CollectionNotFound,
    CollectionReadOnly,
    HistoryLost,
    InternalError,
    InvalidField,
    MmeshError,
    all_errors,
)
from mmesh.serving import handlers
from mmesh.wire.errors import DETAILS_KEY, error_of
from mmesh.wire.transport import open_channel

METADATA = {"shard": "3", "name": "ünïcode"}


def example_of(cls: type[MmeshError]) -> MmeshError:
    """Return an error of exactly this class, with something in every part of it."""
    if issubclass(cls, InvalidField):
        return cls("query.parts[0].text", "is empty; give it words")
    if issubclass(cls, CollectionNotFound | CollectionReadOnly | HistoryLost):
        return cls("photos")
    return cls("what is wrong, in one sentence: ünïcode", METADATA)


class Raising(rpc.RetrievalServiceServicer):
    """Raises whatever the test put in `error`, in an answer and in a stream."""

    error: Exception

    async def UpsertCandidates(self, request, context):  # gRPC names it
        raise self.error

    async def Ingest(self, request_iterator, context):  # gRPC names it
        async for _ in request_iterator:
            yield pb.IngestResponse(ack=pb.IngestAck(through_sequence=1))
            raise self.error


@asynccontextmanager
async def served(error: Exception):
    servicer = Raising()
    servicer.error = error
    server = grpc.aio.server()
    rpc.add_RetrievalServiceServicer_to_server(servicer, handlers.Guarded(server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def failure_of(channel) -> grpc.aio.AioRpcError:
    stub = rpc.RetrievalServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.UpsertCandidates(pb.UpsertCandidatesRequest(), timeout=10)
    return failure.value


def details_of(failure: grpc.aio.AioRpcError) -> dict[str, object]:
    """Return the status's details by name; none may come twice or be of another kind."""
    (data,) = [value for key, value in failure.trailing_metadata() if key == DETAILS_KEY]
    status = status_pb2.Status.FromString(data)
    assert status.code == failure.code().value[0]
    assert status.message == failure.details()
    found = {}
    for detail in status.details:
        name = detail.TypeName().rpartition(".")[2]
        assert name not in found
        found[name] = getattr(error_details_pb2, name)()
        assert detail.Unpack(found[name])
    return found


every_error = pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)


@every_error
async def test_an_error_travels_with_its_code_reason_domain_and_metadata(cls):
    error = example_of(cls)
    async with served(error) as channel:
        failure = await failure_of(channel)
    details = details_of(failure)
    assert failure.code().value[0] == cls.code
    assert failure.details() == error.message
    assert details["ErrorInfo"].reason == cls.reason
    assert details["ErrorInfo"].domain == DOMAIN
    assert dict(details["ErrorInfo"].metadata) == error.metadata


@every_error
async def test_a_bad_request_names_the_field_exactly_when_one_is_wrong(cls):
    error = example_of(cls)
    async with served(error) as channel:
        details = details_of(await failure_of(channel))
    assert ("BadRequest" in details) == issubclass(cls, InvalidField)
    if isinstance(error, InvalidField):
        (violation,) = details["BadRequest"].field_violations
        assert (violation.field, violation.description) == (error.field, error.problem)


@every_error
async def test_a_retry_info_says_the_pause_exactly_when_a_retry_may_help(cls):
    async with served(example_of(cls)) as channel:
        details = details_of(await failure_of(channel))
    assert ("RetryInfo" in details) == (cls.retry_after_s is not None)
    if cls.retry_after_s is not None:
        pause = details["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
        assert pause == pytest.approx(cls.retry_after_s)


@pytest.mark.parametrize(
    "cls", [cls for cls in all_errors() if cls is not MmeshError], ids=lambda cls: cls.__name__
)
async def test_the_same_class_comes_back_with_all_its_parts(cls):
    error = example_of(cls)
    async with served(error) as channel:
        back = error_of(await failure_of(channel))
    assert type(back) is cls
    assert (str(back), back.message, back.metadata) == (error.message,) * 2 + (error.metadata,)
    assert back.retry_after_s == error.retry_after_s
    if isinstance(error, InvalidField):
        assert (back.field, back.problem) == (error.field, error.problem)


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("cross", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_crosses_to_another_process_with_all_its_parts(cls, cross):
    error = example_of(cls)
    error.retry_after_s = 7.0
    error.add_note("of the caller's")
    back = cross(error)
    assert type(back) is cls
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@every_error
async def test_a_stream_that_fails_half_way_ends_with_the_same_status(cls):
    error = example_of(cls)
    async with served(error) as channel:
        call = rpc.RetrievalServiceStub(channel).Ingest()
        await call.write(pb.IngestRequest())
        assert (await call.read()).ack.through_sequence == 1
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
    assert failure.value.code().value[0] == cls.code
    assert details_of(failure.value)["ErrorInfo"].reason == cls.reason


@pytest.mark.parametrize(
    "defect",
    [ValueError("the secret is 1234"), KeyError("secret"), AssertionError("secret")],
    ids=lambda defect: type(defect).__name__,
)
async def test_a_defect_is_internal_and_says_nothing_of_itself(defect):
    async with served(defect) as channel:
        failure = await failure_of(channel)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert details_of(failure)["ErrorInfo"].reason == InternalError.reason
    assert "secret" not in failure.details()
    assert "secret" not in repr(failure.trailing_metadata())
    assert "request id" in failure.details()


async def test_a_timeout_inside_the_server_is_a_deadline():
    async with served(TimeoutError()) as channel:
        failure = await failure_of(channel)
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details_of(failure)["ErrorInfo"].reason == "DEADLINE"


async def test_a_status_of_somebody_else_becomes_the_first_class_with_its_code():
    async with served(ValueError()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary("/mmesh.api.gateway.v1.RetrievalService/Guess")(
                b"", timeout=10
            )
    assert error_of(failure.value).reason == "UNIMPLEMENTED"


def test_codes_are_those_of_grpc():
    numbers = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: int(code) for code in Code}.items() <= numbers.items()


def test_no_two_leaves_of_the_tree_share_code_and_reason():
    leaves = [cls for cls in all_errors() if not cls.__subclasses__()]
    keys = [(cls.code, cls.reason) for cls in leaves]
    assert len(set(keys)) == len(keys)
