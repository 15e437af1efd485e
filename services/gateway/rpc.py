"""What calls to the other services share: deadlines, request ids, and failures as MmeshErrors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from mmesh.errors import MmeshError, Unavailable
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from mmesh.serving.handlers import REQUEST_ID_KEY
from mmesh.wire.errors import error_of

Answer = TypeVar("Answer")


async def answer_of(call: Awaitable[Answer], service: str) -> Answer:
    """Return the answer of a call to `service`; failures are MmeshErrors."""
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        error = error_of(failure)
    except MmeshError as failure:
        error = failure
    if error.reason == "UNAVAILABLE":
        raise Unavailable(f"{service} does not answer: {error.message}") from None
    raise error from None


def options_for(deadline: Deadline) -> dict[str, Any]:
    """Return what every outgoing call carries: its deadline and the id of the request."""
    metadata = ((REQUEST_ID_KEY, logs.request_id.get()),)
    return {"timeout": deadline.remaining(), "metadata": metadata}
