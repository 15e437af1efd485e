"""What happens around every call: request id, access log, metrics, errors, malformed messages."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Histogram

from mmesh.errors import (
    DataLoss,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MmeshError,
    ShardUnavailable,
    StaleReplica,
    StorageFull,
)
from mmesh.serving import logs, telemetry, tracing
from mmesh.serving.deadline import Context, Deadline
from mmesh.serving.request_room import SMALL_BYTES, HeldRoom, RequestRoom
from mmesh.wire.encoding import as_bytes
from mmesh.wire.errors import DETAILS_KEY, status_of
from mmesh.wire.oversize import FILTERS, MANY, check_filters, check_values

logger = logging.getLogger(__name__)

FINAL = (ShardUnavailable, StaleReplica)
"""Errors for which the caller's time went by already: its channel must not try again by itself."""
POLLED = "/GetShard"
"""A method that gateways call every second: its calls are no news."""
STREAMED = "/SearchStream"
"""A method whose calls last as long as their callers: what counts is each of their searches."""
ROOM_BYTES = 128 << 20
"""Of large requests under way where the server does not say it."""
REQUEST_ID_KEY = "mmesh-request-id"
EARLY, EARLY_S = 0.02, 0.02
"""A caller's clock began before ours, and gRPC rounds the time that it sends up, by 1 %: what is
cancelled with this share of its time left, and so many seconds, is late."""
Answer = TypeVar("Answer")
Handler = Any  # grpc.RpcMethodHandler is generic in its stubs only


@dataclass(frozen=True, slots=True)
class Call:
    """One running call."""

    method: str
    context: Context


class Guarded:
    """A server as far as generated code adds services to it: their calls run inside `Around`.

    Handlers are wrapped when they are added. An interceptor would do the same for each call anew,
    at about 80 us of CPU (benchmarks/results/index_search.json tells what a call has to spend).
    """

    def __init__(self, server: grpc.aio.Server, room: RequestRoom | None = None) -> None:
        self._server = server
        self._room = room or RequestRoom(ROOM_BYTES)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add handlers, guarded."""
        self._server.add_generic_rpc_handlers(
            [_GuardedHandlers(one, self._room) for one in handlers]
        )

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Do nothing: these are the same handlers once more."""


class _GuardedHandlers(grpc.GenericRpcHandler):
    """The handlers of a service, each wrapped when it is first called."""

    def __init__(self, inner: grpc.GenericRpcHandler, room: RequestRoom) -> None:
        self._inner = inner
        self._room = room
        self._known: dict[str, Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler of a call, or None for a method of another service."""
        method = handler_call_details.method
        if method not in self._known:
            handler = self._inner.service(handler_call_details)
            if handler is None:  # not remembered: there is no end of unknown methods
                return None
            self._known[method] = _wrapped(handler, method, self._room)
            # There before the first one, which is a rise then: its alert fires at once.
            for error in (DataLoss, StorageFull):
                telemetry.errors_total.labels(method, error.reason)
        return self._known[method]


def _wrapped(handler: Any, method: str, room: RequestRoom) -> Handler:
    parse = handler.request_deserializer
    # What a stream may hold is for its behaviour to say: room that is short would end it.
    asked = None if handler.request_streaming else room
    shapes = {
        "request_deserializer": _lenient(parse, method, asked) if parse else None,
        "response_serializer": as_bytes,
    }
    behaviour: Any = next(
        one
        for one in (
            handler.unary_unary,
            handler.stream_unary,
            handler.unary_stream,
            handler.stream_stream,
        )
        if one
    )

    def checked(request: Any) -> Any:
        return _all_well_formed(request) if handler.request_streaming else _well_formed(request)

    async def answer(request: Any, context: Context) -> Any:
        with _held_for(request):
            async with Around(Call(method, context)):
                return await behaviour(checked(request), context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        with _held_for(request):
            async with Around(Call(method, context)):
                async for response in behaviour(checked(request), context):
                    yield response

    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(stream if handler.response_streaming else answer, **shapes)


_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and responses stream."""


class Around:
    """Runs a call: with a request id, within its deadline, its errors as statuses, one log line."""

    __slots__ = ("_call", "_given_s", "_start", "_timeout")

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __aenter__(self) -> None:
        context = self._call.context
        given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY, "")
        _set_request_id(str(given))
        self._start = time.perf_counter()
        self._given_s: float | None = context.time_remaining()  # type: ignore[no-untyped-call]
        self._timeout = asyncio.timeout(self._given_s)
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            try:
                await self._timeout.__aexit__(kind, error, trace)
            except TimeoutError as late:
                error = late
            if error is not None:
                await _fail(self._call, error)
        finally:
            if not self._call.method.startswith("/grpc."):
                seconds = time.perf_counter() - self._start
                _record(self._call.method, self._code_name(error, seconds), seconds)

    def _code_name(self, error: BaseException | None, seconds: float) -> str:
        """Return how the call ended; gRPC itself does not tell one that was cancelled."""
        if not isinstance(error, asyncio.CancelledError):
            return _code_name(self._call.context)
        given_s = self._given_s
        if given_s is None or given_s - seconds > EARLY * given_s + EARLY_S:
            return grpc.StatusCode.CANCELLED.name
        telemetry.errors_total.labels(self._call.method, DeadlineExceeded.reason).inc()
        return grpc.StatusCode.DEADLINE_EXCEEDED.name


async def as_call(
    method: str, request_id: str, deadline: Deadline, work: Awaitable[Answer]
) -> Answer:
    """Do a part of a long call as if it were a call of `method`, and return what comes of it.

    It gets a request id, a deadline, a log line and its place in the metrics.

    Raises:
        MmeshError: the status with which the call would have ended.
    """
    _set_request_id(request_id)
    start, code = time.perf_counter(), "OK"
    try:
        async with asyncio.timeout(deadline.remaining()):
            return await work
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    except Exception as error:
        failure = _failure_of(method, error)
        code = failure.code.name
        raise failure from None
    finally:
        _record(method, code, time.perf_counter() - start)


async def _fail(call: Call, error: BaseException) -> None:
    """End the call with the status of an error; return where it is to go on by itself."""
    if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
        failure = _failure_of(call.method, error)
        status = status_of(failure)
        code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
        final = (("grpc-retry-pushback-ms", "-1"),) if isinstance(failure, FINAL) else ()
        trailers = ((DETAILS_KEY, status.SerializeToString()), *final)
        await call.context.abort(code, status.message, trailers)


def _failure_of(method: str, error: Exception) -> MmeshError:
    """Return what to tell the caller of an error, and count it."""
    if isinstance(error, TimeoutError):
        error = DeadlineExceeded("the deadline passed before the work was done")
    elif not isinstance(error, MmeshError):
        logger.error("defect", extra={"method": method}, exc_info=error)
        hint = f"a defect of mmesh; the logs have it under request id {logs.request_id.get()}"
        error = InternalError(hint)
    elif error.__cause__ is not None and not isinstance(error, InvalidRequest):
        _log_cause(method, error)
    telemetry.errors_total.labels(method, error.reason).inc()
    return error


def _log_cause(method: str, error: MmeshError) -> None:
    """Log what callers are not told of: the words of libraries, with addresses and paths."""
    extra = {
        "method": method,
        "reason": error.reason,
        "error": error.message,
        "cause": " ".join(str(error.__cause__).split())[:1000],
    }
    logger.warning("failed", extra=extra)


def _set_request_id(given: str) -> None:
    """Give the call, for the logs and for outgoing calls, the id that came with it or a new one."""
    logs.request_id.set(given[:64] or secrets.token_hex(16))


def _record(method: str, code: str, seconds: float) -> None:
    if not method.endswith(STREAMED):
        _seconds_of(method, code).observe(seconds, tracing.exemplar())
    level = logging.DEBUG if method.endswith(POLLED) else logging.INFO
    if logger.isEnabledFor(level):
        extra = {"method": method, "code": code, "ms": round(seconds * 1000, 2)}
        logger.log(level, "call", extra=extra)


@cache
def _seconds_of(method: str, code: str) -> Histogram:
    return telemetry.rpc_seconds.labels(method, code)


def _code_name(context: Context) -> str:
    if context.cancelled():
        return "CANCELLED"
    code: Any = context.code()
    if isinstance(code, int):
        return next(c.name for c in grpc.StatusCode if c.value[0] == code)
    return code.name if code else "OK"


@dataclass(frozen=True, slots=True)
class _Malformed:
    """What stands for a message that is not parsed, with what is wrong with it."""

    error: MmeshError


@dataclass(slots=True)
class _Large:
    """A large message with its room. gRPC keeps this one, and so not the message."""

    message: Any
    held: HeldRoom | None

    def taken(self) -> Any:
        """Return the message, once."""
        message, self.message = self.message, None
        return message


def _held_for(request: Any) -> AbstractContextManager[object]:
    """Return the room of a request, to be given back when its call ends."""
    return (isinstance(request, _Large) and request.held) or _NOTHING


_NOTHING = nullcontext()


def _lenient(
    parse: Callable[[bytes], Any], method: str, room: RequestRoom | None
) -> Callable[[bytes], Any]:
    filters, many = FILTERS.get(method), MANY.get(method)

    def parsed(data: bytes) -> Any:
        if filters:
            check_filters(data, filters)
        if many:
            check_values(data, many)
        return parse(data)

    def deserialize(data: bytes) -> Any:
        try:
            if len(data) <= SMALL_BYTES:
                return parsed(data)
            held = room.of(len(data)) if room else None  # before the message takes as much again
            return _Large(parsed(data), held)
        except MmeshError as error:
            return _Malformed(error)
        except (DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _Malformed(InvalidRequest(f"the message is not valid protobuf: {error}"))

    return deserialize


def _well_formed(message: Any) -> Any:
    if isinstance(message, _Malformed):
        raise message.error
    return message.taken() if isinstance(message, _Large) else message


async def _all_well_formed(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _well_formed(message)
