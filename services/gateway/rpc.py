"""Remote procedure calls to the other services: deadlines, request ids, errors and failover."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from mmesh.errors import MmeshError, Unavailable
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from mmesh.serving.handlers import REQUEST_ID_KEY
from mmesh.wire.errors import error_of, is_told_by_server

Answer = TypeVar("Answer")
Server = TypeVar("Server")
MOST_PARTS = 3
"""However many servers are left to be tried, the next one gets a third of the time at least."""


async def answer_of(call: Awaitable[Answer], service: str) -> Answer:
    """Return the answer of a call to `service`; failures are MmeshErrors.

    What gRPC says of a server that is not reached names its address, which is for the logs only.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        error = error_of(failure)
        if error.reason == "UNAVAILABLE" and not is_told_by_server(failure):
            raise Unavailable(f"{service} does not answer") from failure
    except MmeshError as failure:
        error = failure
    if error.reason == "UNAVAILABLE":
        raise Unavailable(f"{service} does not answer: {error.message}") from None
    raise error from None


def options_for(deadline: Deadline) -> dict[str, Any]:
    """Return what every outgoing call carries: its deadline and the id of the request."""
    metadata = ((REQUEST_ID_KEY, logs.request_id.get()),)
    return {"timeout": deadline.remaining(), "metadata": metadata}


async def first_answer(
    servers: Sequence[Server],
    call: Callable[[Server, Deadline], Awaitable[Answer]],
    deadline: Deadline,
    goes_on: Callable[[Server, MmeshError], bool],
    most_parts: int = MOST_PARTS,
) -> Answer:
    """Failover: return the answer of the first server that has one.

    Each but the last gets only its part of the time, so that one that hangs is not waited for to
    the end; with `most_parts` 1 all that is left. `goes_on` hears of every failure, and tells
    whether another server may do better.

    Raises:
        MmeshError: that of the server which was asked last.
    """
    for left, server in zip(range(len(servers), 0, -1), servers, strict=True):
        part = deadline if left == 1 else deadline.share(1 / min(left, most_parts))
        try:
            return await call(server, part)
        except MmeshError as error:
            if not goes_on(server, error) or left == 1 or deadline.remaining() <= 0:
                raise
    raise Unavailable("no server is known that could be asked")
