"""How long a call may still take, handed down to what it calls."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from mmesh.errors import DeadlineExceeded

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext  # generic in its stubs only


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock; every hop gets a share of what is left until then."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the moment `seconds` from now."""
        return cls(time.monotonic() + seconds)

    @classmethod
    def of(cls, context: Context, default_s: float) -> Deadline:
        """Return the caller's deadline, or `default_s` from now when it set none."""
        remaining = context.time_remaining()  # type: ignore[no-untyped-call]  # stubs
        return cls.after(default_s if remaining is None else min(remaining, 86_400.0))

    def remaining(self) -> float:
        """Return the seconds left; never negative."""
        return max(0.0, self.at - time.monotonic())

    def share(self, part: float) -> Deadline:
        """Return a deadline that leaves the caller 1 - `part` of what is left."""
        return Deadline.after(self.remaining() * part)

    def check(self) -> None:
        """Raise `DeadlineExceeded` when nothing is left."""
        if self.remaining() <= 0:
            raise DeadlineExceeded("the deadline passed before the work was done")
