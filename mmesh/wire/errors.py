"""Errors to `google.rpc.Status` and `Problem`, and back: what travels when a call fails."""

from __future__ import annotations

from datetime import timedelta

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from mmesh.api.problem.v1 import problem_pb2
from mmesh.errors import (
    DOMAIN,
    Code,
    InvalidField,
    MmeshError,
    Unavailable,
    error_class,
)

LONGEST = 500
DETAILS_KEY = "grpc-status-details-bin"
BROKEN_WRITE = "Internal error from Core"
"""What gRPC says, as INTERNAL, of a call that the server ended while it was written to."""


def status_of(error: MmeshError) -> status_pb2.Status:
    """Return the status with ErrorInfo, and BadRequest and RetryInfo where they say more."""
    metadata = {name: _cut(value) for name, value in error.metadata.items()}
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field), description=_cut(error.problem)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        pause = error_details_pb2.RetryInfo()
        pause.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
        details.append(pause)
    status = status_pb2.Status(code=int(error.code), message=_cut(error.message))
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(text: str) -> str:
    """Shorten what echoes a request: a status travels in headers, which are small."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def error_of(failure: grpc.aio.AioRpcError) -> MmeshError:
    """Return the error that a failed call stands for."""
    code = int(failure.code().value[0])
    reason, metadata, retry_after_s = "", {}, None
    message = failure.details() or failure.code().name
    if message == BROKEN_WRITE:
        return Unavailable("the call ended while it was written to")
    for detail in _details(failure):
        info, pause = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(pause.DESCRIPTOR) and detail.Unpack(pause):
            retry_after_s = pause.retry_delay.ToTimedelta().total_seconds()
    if not reason and code == Code.RESOURCE_EXHAUSTED:
        reason = "MESSAGE_TOO_LARGE" if "message larger than max" in message else ""
    error = make_error(code, reason, message, metadata)
    if retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error


def _details(failure: grpc.aio.AioRpcError) -> list[Any]:
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return list(status_pb2.Status.FromString(value).details)
    return []


def problem_to_pb(error: MmeshError) -> problem_pb2.Problem:
    """Return the problem that says what `error` says."""
    return problem_pb2.Problem(
        code=int(error.code), reason=error.reason, message=error.message, metadata=error.metadata
    )


def problem_from_pb(message: problem_pb2.Problem) -> MmeshError:
    """Return the error that `message` stands for."""
    return make_error(message.code, message.reason, message.message, dict(message.metadata))


def make_error(code: int, reason: str, message: str, metadata: dict[str, str]) -> MmeshError:
    """Return an error of the class that fits code and reason, without its own wording."""
    cls = error_class(code, reason)
    error = cls.__new__(cls)
    MmeshError.__init__(error, message, metadata)
    if isinstance(error, InvalidField):
        error.field = metadata.get("field", "")
        error.problem = message.removeprefix(error.field).strip()
    return error
