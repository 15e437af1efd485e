"""What happens around every call: request id, access log, metrics, errors, malformed messages."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from mmesh.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MmeshError,
    ShardUnavailable,
    StaleReplica,
)
from mmesh.serving import logs, telemetry
from mmesh.serving.deadline import Context
from mmesh.status import DETAILS_KEY, status_of

logger = logging.getLogger(__name__)

FINAL = (ShardUnavailable, StaleReplica)
"""Errors for which the caller's time went by already: its channel must not try again by itself."""
POLLED = "/GetShard"
"""A method that gateways call every second: its calls are no news."""
REQUEST_ID_KEY = "mmesh-request-id"
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
              "response_serializer": handler.response_serializer}  # fmt: skip
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
        _set_request_id(context)
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
                _record(self._call, time.perf_counter() - self._start)


async def _fail(call: Call, error: BaseException) -> None:
    """End the call with the status of an error; return where it is to go on by itself."""
    if isinstance(error, MmeshError):
        await _abort(call, error)
    elif isinstance(error, TimeoutError):
        await _abort(call, DeadlineExceeded("the deadline passed before the work was done"))
    elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
        logger.error("defect", extra={"method": call.method}, exc_info=error)
        hint = f"a defect of mmesh; the logs have it under request id {logs.request_id.get()}"
        await _abort(call, InternalError(hint))


def _set_request_id(context: Context) -> None:
    """Give the call, for the logs and for outgoing calls, the id that came with it or a new one."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY, "")
    logs.request_id.set(str(given)[:64] or secrets.token_hex(16))


def _record(call: Call, seconds: float) -> None:
    code = _code_name(call.context)
    telemetry.rpc_seconds.labels(call.method, code).observe(seconds)
    extra = {"method": call.method, "code": code, "ms": round(seconds * 1000, 2)}
    level = logging.DEBUG if call.method.endswith(POLLED) else logging.INFO
    logger.log(level, "call", extra=extra)


def _code_name(context: Context) -> str:
    if context.cancelled():
        return "CANCELLED"
    code: Any = context.code()
    if isinstance(code, int):
        return next(c.name for c in grpc.StatusCode if c.value[0] == code)
    return code.name if code else "OK"


async def _abort(call: Call, error: MmeshError) -> None:
    telemetry.errors_total.labels(call.method, error.reason).inc()
    status = status_of(error)
    code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
    final = (("grpc-retry-pushback-ms", "-1"),) if isinstance(error, FINAL) else ()
    trailers = ((DETAILS_KEY, status.SerializeToString()), *final)
    await call.context.abort(code, status.message, trailers)


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
