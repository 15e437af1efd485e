"""Times to protobuf and back: seconds to Duration, moments to Timestamp."""

from __future__ import annotations

from datetime import date, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from mmesh.errors import InvalidField
from mmesh.values.timestamps import from_micros, micros_of

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


def timestamp_to_pb(moment: date) -> Timestamp:
    """Return the message of a moment."""
    seconds, micros = divmod(micros_of(moment), 10**6)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def timestamp_from_pb(message: Timestamp, path: str) -> datetime:
    """Return the moment of `message`, in UTC; nanoseconds are cut off.

    Raises:
        InvalidField: it is before the year 1 or after 9999, or not well-formed.
    """
    try:
        if not 0 <= message.nanos < 10**9:
            raise OverflowError
        return from_micros(message.seconds * 10**6 + message.nanos // 1000)
    except OverflowError:
        problem = "is no time of the years 1 to 9999 with 0 to 999999999 nanoseconds"
        raise InvalidField(path, problem) from None
