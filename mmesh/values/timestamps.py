"""Moments in time as attributes: aware `datetime` in UTC, to the microsecond; RFC 3339 as text.

There is one rule for what is left out: a date without a time is midnight, and a time without an
offset, a `datetime` without a zone among them, is in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:[Tt ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:[Zz]|[+-]\d{2}:?\d{2})?)?"
)
EXAMPLE = "2024-01-31 or 2024-01-31T12:30:00Z"


def to_utc(moment: date) -> datetime:
    """Return the moment of a date or datetime, in UTC.

    Raises:
        ValueError: it is before the year 1 or after 9999.
    """
    if not isinstance(moment, datetime):
        return datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if moment.utcoffset() is None:
        return moment.replace(tzinfo=UTC, fold=0)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{moment} is outside the years 1 to 9999") from None


def parse_timestamp(text: str) -> datetime:
    """Read an RFC 3339 date or time; what is finer than a microsecond is cut off.

    Raises:
        ValueError: it is none.
    """
    if not _RFC_3339.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no RFC 3339 time; write it like {EXAMPLE}")
    try:
        return to_utc(datetime.fromisoformat(text.upper()))
    except ValueError as error:
        raise ValueError(f"{text!r} is no date or time: {error}") from None


def format_timestamp(moment: date) -> str:
    """Return RFC 3339 with a Z, which `parse_timestamp` reads."""
    return to_utc(moment).replace(tzinfo=None).isoformat() + "Z"


def micros_of(moment: date) -> int:
    """Return microseconds since 1970."""
    return (to_utc(moment) - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the moment that is `micros` microseconds after 1970.

    Raises:
        OverflowError: it is before the year 1 or after 9999.
    """
    return _EPOCH + timedelta(microseconds=micros)
