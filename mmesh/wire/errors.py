"""Errors to `google.rpc.Status` and `Problem`, and back: what travels when a call fails."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from mmesh.api.problem.v1 import problem_pb2
from mmesh.errors import (
    DOMAIN,
    Code,
    InvalidField,
    InvalidRequest,
    MmeshError,
    NotFound,
    Unavailable,
    error_class,
    new_error,
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
            field=_cut(error.field), description=_cut(public_text(error.problem, echoes=True))
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        pause = error_details_pb2.RetryInfo()
        pause.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
        details.append(pause)
    status = status_pb2.Status(code=int(error.code), message=_cut(_told(error)))
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


# Texts, which `re` compiles when it first needs them: a client needs none. What repeats may begin
# only where it cannot go on from before, else a long text takes the square of its length.
_ALWAYS_INSIDE = (
    r"""(?i:\b(?:ipv4|ipv6|unix|vsock):\S+"""  # an address, as gRPC writes it
    r"""|\b0x[0-9a-f]{6,}\b"""  # of an object in memory
    r"""|(?<![\w./~+-])[\w./~+-]*\.(?:c|cc|cpp|cu|h|hpp|py|pyx|rs):\d+)"""  # a line of source
)
_INSIDE = (
    r"""(?i:(?<![a-z0-9+.-])[a-z0-9+.-]+://[^\s"',;)]+"""
    r"""|(?<![\w.:/-])/(?:[^\s/:"',;()]+/)+[^\s:"',;()]*"""  # an absolute path
    r"""|\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?"""
    r"""|\[(?:[0-9a-f]*:){2,}[0-9a-f.]*\](?::\d+)?"""
    r"""|\b(?:host|hostaddr|user|password|dbname|port)=\S+)"""
)


def public_text(text: str, *, echoes: bool) -> str:
    """Return what callers are told: without addresses, paths and lines of source of a service.

    What libraries say of a failure has them; the logs of the service have all of it. Texts that
    echo the caller's own request keep all but what can only come from inside. Of a long text the
    beginning is told.
    """
    text = _beginning(text)
    text = re.sub(_ALWAYS_INSIDE, "…", text)
    return text if echoes else re.sub(_INSIDE, "…", text)


def _beginning(text: str) -> str:
    """Return enough of a long text, which ends with a whole word: half an address is none."""
    if len(text) <= 2 * LONGEST:
        return text
    return text[: 2 * LONGEST].rpartition(" ")[0] or text[: 2 * LONGEST]


def _told(error: MmeshError) -> str:
    return public_text(error.message, echoes=isinstance(error, InvalidRequest | NotFound))


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
        with suppress(DecodeError, ValueError, OverflowError):  # the same
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Is(pause.DESCRIPTOR) and detail.Unpack(pause):
                retry_after_s = pause.retry_delay.ToTimedelta().total_seconds()
    if not reason and code == Code.CANCELLED:
        # Who cancels a call here sees asyncio.CancelledError. This comes from a server that is
        # shutting down: gRPC cancels the calls that reach it then, and no handler has seen them.
        return Unavailable("the server ended the call; it may be shutting down")
    if not reason and code == Code.RESOURCE_EXHAUSTED:
        reason = "MESSAGE_TOO_LARGE" if "message larger than max" in message else ""
    error = make_error(code, reason, message, metadata)
    if retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error


def is_told_by_server(failure: grpc.aio.AioRpcError) -> bool:
    """Tell whether the words of a failure are those of a server of mmesh, not of gRPC itself."""
    return bool(_details(failure))


def _details(failure: grpc.aio.AioRpcError) -> list[Any]:
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            with suppress(DecodeError):  # what a proxy puts there may be anything
                return list(status_pb2.Status.FromString(value).details)
    return []


def problem_to_pb(error: MmeshError) -> problem_pb2.Problem:
    """Return the problem that says what `error` says."""
    return problem_pb2.Problem(
        code=int(error.code),
        reason=error.reason,
        message=_cut(_told(error)),
        metadata={name: _cut(value) for name, value in error.metadata.items()},
    )


def problem_from_pb(message: problem_pb2.Problem) -> MmeshError:
    """Return the error that `message` stands for."""
    return make_error(message.code, message.reason, message.message, dict(message.metadata))


def make_error(code: int, reason: str, message: str, metadata: dict[str, str]) -> MmeshError:
    """Return an error of the class that fits code and reason, without its own wording."""
    error = new_error(error_class(code, reason), message, metadata)
    if type(error) is MmeshError:  # of a proxy
        error.code = Code(code)
        error.reason = reason or error.code.name
    if isinstance(error, InvalidField):
        error.field = metadata.get("field", "")
        error.problem = message.removeprefix(error.field).strip()
    return error
