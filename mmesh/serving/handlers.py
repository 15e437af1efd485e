"""What happens around every call: request id, access log, metrics, errors, malformed messages."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Histogram

from mmesh.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MmeshError,
    ShardUnavailable,
    StaleReplica,
)
from mmesh.serving import logs, telemetry
from mmesh.serving.deadline import Context, Deadline
from mmesh.wire.encoding import as_bytes
from mmesh.wire.errors import DETAILS_KEY, status_of

logger = logging.getLogger(__name__)

FINAL = (ShardUnavailable, StaleReplica)
"""Errors for which the caller's time went by already: its channel must not try again by itself."""
POLLED = "/GetShard"
"""A method that gateways call every second: its calls are no news."""
STREAMED = "/SearchStream"
"""A method whose calls last as long as their callers: what counts is each of their searches."""
REQUEST_ID_KEY = "mmesh-request-id"
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

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add handlers, guarded."""
        self._server.add_generic_rpc_handlers([_GuardedHandlers(one) for one in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Do nothing: these are the same handlers once more."""


class _GuardedHandlers(grpc.GenericRpcHandler):
    """The handlers of a service, each wrapped when it is first called."""

    def __init__(self, inner: grpc.GenericRpcHandler) -> None:
        self._inner = inner
        self._known: dict[str, Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler of a call, or None for a method of another service."""
        method = handler_call_details.method
        if method not in self._known:
            handler = self._inner.service(handler_call_details)
            if handler is None:  # not remembered: there is no end of unknown methods
                return None
            self._known[method] = _wrapped(handler, method)
        return self._known[method]


def _wrapped(handler: Any, method: str) -> Handler:
    parse = handler.request_deserializer
    shapes = {"request_deserializer": _lenient(parse) if parse else None,
              "response_serializer": as_bytes}  # fmt: skip
    behaviour: Any = next(
        one for one in (handler.unary_unary, handler.stream_unary, handler.unary_stream,
                        handler.stream_stream) if one
    )  # fmt: skip

    def checked(request: Any) -> Any:
        return _all_well_formed(request) if handler.request_streaming else _well_formed(request)

    async def answer(request: Any, context: Context) -> Any:
        async with Around(Call(method, context)):
            return await behaviour(checked(request), context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
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

    __slots__ = ("_call", "_start", "_timeout")

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __aenter__(self) -> None:
        context = self._call.context
        given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY, "")
        _set_request_id(str(given))
        self._start = time.perf_counter()
        self._timeout = asyncio.timeout(context.time_remaining())  # type: ignore[no-untyped-call]
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
                _record(self._call.method, _code_name(self._call.context), seconds)


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
    telemetry.errors_total.labels(method, error.reason).inc()
    return error


def _set_request_id(given: str) -> None:
    """Give the call, for the logs and for outgoing calls, the id that came with it or a new one."""
    logs.request_id.set(given[:64] or secrets.token_hex(16))


def _record(method: str, code: str, seconds: float) -> None:
    if not method.endswith(STREAMED):
        _seconds_of(method, code).observe(seconds)
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
    """What stands for a message that is no valid protobuf: INVALID_ARGUMENT, not INTERNAL."""

    reason: str


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except (DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _Malformed(str(error))

    return deserialize


def _well_formed(message: Any) -> Any:
    if isinstance(message, _Malformed):
        raise InvalidRequest(f"the message is not valid protobuf: {message.reason}")
    return message


async def _all_well_formed(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _well_formed(message)
