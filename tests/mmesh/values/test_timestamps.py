"""Moments: one rule for what is left out, in Python, in texts and on the wire."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from mmesh import wire
from mmesh.candidates import check_attributes
from mmesh.errors import InvalidField
from mmesh.values.timestamps import (
    format_timestamp,
    from_micros,
    micros_of,
    parse_timestamp,
    to_utc,
)

MIDNIGHT = datetime(2024, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    "moment",
    [
        date(2024, 1, 31),
        datetime(2024, 1, 31),
        datetime(2024, 1, 31, tzinfo=UTC),
        datetime(2024, 1, 31, 5, 30, tzinfo=timezone(timedelta(hours=5.5))),
    ],
)
def test_what_is_left_out_is_midnight_in_utc(moment):
    assert wire.attribute_from_pb(wire.attribute_to_pb(moment), "x") == MIDNIGHT


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-31",
        "2024-01-31T00:00:00Z",
        "2024-01-31 00:00",
        "2024-01-30t19:00:00-05:00",
        "2024-01-31T00:00:00.000000999z",
    ],
)
def test_rfc_3339_is_read(text):
    assert parse_timestamp(text) == MIDNIGHT


@pytest.mark.parametrize(
    "text",
    ["", "20240131", "2024-W05", "31.01.2024", "2024-02-30", "2024-01-31T24:61Z", "0000-01-01",
     "0001-01-01T00:00+01:00", "2024-01-31T", "٢٠٢٤-01-31", "2024-01-31T00:00:00+99:00"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"no RFC 3339 time|no date or time"):
        parse_timestamp(text)


@given(st.datetimes(timezones=st.none() | st.timezones()).filter(lambda m: 2 < m.year < 9998))
def test_a_moment_survives_texts_numbers_and_the_wire(moment):
    utc = to_utc(moment)
    assert parse_timestamp(format_timestamp(moment)) == utc
    assert from_micros(micros_of(moment)) == utc
    assert wire.attribute_from_pb(wire.attribute_to_pb(moment), "x") == utc


@pytest.mark.parametrize(
    "message", [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(nanos=-1)]
)
def test_a_message_that_is_no_time_is_refused(message):
    bad = wire.attribute_to_pb(MIDNIGHT)
    bad.timestamp_value.CopyFrom(message)
    with pytest.raises(InvalidField, match="years 1 to 9999"):
        wire.attribute_from_pb(bad, "candidate.attributes['x']")


def test_a_moment_before_the_first_year_is_refused():
    first = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    with pytest.raises(InvalidField, match="outside the years"):
        check_attributes({"x": first}, "candidate.attributes")
