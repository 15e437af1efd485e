"""Seconds to protobuf's Duration and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from mmesh.errors import InvalidField

NANOS = 10**9
LONGEST_S = 315_576_000_000
"""Seconds of the longest duration either way: about 10,000 years."""


def duration_to_pb(seconds: float, path: str) -> Duration:
    """Return the message of a number of seconds, to the nearest nanosecond.

    Raises:
        InvalidField: no duration is that long; `path` names where it was.
    """
    if not -LONGEST_S <= seconds <= LONGEST_S:  # also refuses NaN
        raise InvalidField(path, f"is {seconds}, which is no duration")
    nanos = round(seconds * NANOS)
    whole = abs(nanos) // NANOS * (1 if nanos >= 0 else -1)
    return Duration(seconds=whole, nanos=nanos - whole * NANOS)


def seconds_from_pb(message: Duration, path: str, most_s: float = LONGEST_S) -> float:
    """Return the seconds of `message`, 0 to `most_s`.

    Raises:
        InvalidField: it is negative, longer, or not well-formed.
    """
    nanos = message.seconds * NANOS + message.nanos
    if not (0 <= message.nanos < NANOS and 0 <= nanos <= most_s * NANOS):
        problem = f"is {nanos / NANOS} s; 0 to {most_s} s are allowed"
        raise InvalidField(path, problem)
    return nanos / NANOS
