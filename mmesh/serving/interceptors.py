"""What happens around every call: request id, access log, metrics, errors, malformed messages."""

from __future__ import annotations

import abc
import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
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
REQUEST_ID_KEY = "mmesh-request-id"
Handler = Any  # grpc.RpcMethodHandler is generic in its stubs only


@dataclass(frozen=True, slots=True)
class Call:
    """One running call."""

    method: str
    context: Context


class Around(grpc.aio.ServerInterceptor, abc.ABC):
    """Runs every call inside `around(call)`."""

    @abc.abstractmethod
    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Return what the call runs inside of."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler of the call, wrapped."""
        handler = await continuation(handler_call_details)
        return _wrapped(handler, self.around, handler_call_details.method)


def _wrapped(
    handler: Any, around: Callable[[Call], AbstractAsyncContextManager[None]], method: str
) -> Any:
    if handler is None:
        return None
    shapes = {"request_deserializer": handler.request_deserializer,
              "response_serializer": handler.response_serializer}  # fmt: skip

    async def answer(request: Any, context: Context) -> Any:
        async with around(Call(method, context)):
            behaviour = handler.unary_unary or handler.stream_unary
            return await behaviour(request, context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(Call(method, context)):
            behaviour = handler.unary_stream or handler.stream_stream
            async for response in behaviour(request, context):
                yield response

    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(answer, **shapes)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(answer, **shapes)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(stream, **shapes)
    return grpc.stream_stream_rpc_method_handler(stream, **shapes)


class RequestIds(Around):
    """Gives the call the request id that came with it, or a new one."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Set the id for the logs and for outgoing calls."""
        metadata = dict(call.context.invocation_metadata() or ())
        given = metadata.get(REQUEST_ID_KEY, "")
        logs.request_id.set(str(given)[:64] or uuid.uuid4().hex)
        yield


class Access(Around):
    """Counts and times every call, and writes one line about it; health checks are left out."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Measure from the first to the last moment of the call."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if not call.method.startswith("/grpc."):
                self._record(call, time.perf_counter() - start)

    @staticmethod
    def _record(call: Call, seconds: float) -> None:
        code = _code_name(call.context)
        telemetry.rpc_seconds.labels(call.method, code).observe(seconds)
        extra = {"method": call.method, "code": code, "ms": round(seconds * 1000, 2)}
        logger.info("call", extra=extra)


def _code_name(context: Context) -> str:
    if context.cancelled():
        return "CANCELLED"
    code: Any = context.code()
    if isinstance(code, int):
        return next(c.name for c in grpc.StatusCode if c.value[0] == code)
    return code.name if code else "OK"


class Errors(Around):
    """Ends a failed call with its `google.rpc.Status`; what is no MmeshError is INTERNAL."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Turn exceptions into statuses."""
        try:
            yield
        except MmeshError as error:
            await _abort(call, error)
        except TimeoutError:
            await _abort(call, DeadlineExceeded("the deadline passed before the work was done"))
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception:
            logger.exception("defect", extra={"method": call.method})
            hint = f"a defect of mmesh; the logs have it under request id {logs.request_id.get()}"
            await _abort(call, InternalError(hint))


class Deadlines(Around):
    """Ends a call, and all work for it, as soon as its caller's deadline has passed."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Cancel what runs inside when the time is up; the errors say DEADLINE_EXCEEDED."""
        async with asyncio.timeout(call.context.time_remaining()):  # type: ignore[no-untyped-call]
            yield


async def _abort(call: Call, error: MmeshError) -> None:
    telemetry.errors_total.labels(call.method, error.reason).inc()
    status = status_of(error)
    code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
    final = (("grpc-retry-pushback-ms", "-1"),) if isinstance(error, FINAL) else ()
    trailers = ((DETAILS_KEY, status.SerializeToString()), *final)
    await call.context.abort(code, status.message, trailers)


@dataclass(frozen=True, slots=True)
class _Malformed:
    reason: str


class WellFormed(grpc.aio.ServerInterceptor):
    """Answers a message that is not valid protobuf with INVALID_ARGUMENT instead of INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler with a deserializer that never raises."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        shapes = {"request_deserializer": _lenient(handler.request_deserializer),
                  "response_serializer": handler.response_serializer}  # fmt: skip

        async def answer(request: Any, context: Context) -> Any:
            return await handler.unary_unary(_well_formed(request), context)

        async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            checked = (_well_formed(request) async for request in requests)
            async for response in handler.stream_stream(checked, context):
                yield response

        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(answer, **shapes)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(stream, **shapes)
        return handler


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


def standard() -> list[grpc.aio.ServerInterceptor]:
    """Return what every server runs its calls inside of, outermost first."""
    return [RequestIds(), Access(), Errors(), Deadlines(), WellFormed()]
