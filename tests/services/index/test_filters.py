"""Columns of attributes against Python's own comparisons, row by row."""

import operator
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.errors import DataLoss
from mmesh.filters import AllOf, AnyOf, Compare, Exists, In, Not, Operator
from services.index.log.rows import attributes_to_json
from services.index.segments.columns import ChosenCache, Columns

ROWS = [
    {"topic": "cats", "year": 1990, "tags": ("a", "b")},
    {"topic": "dogs", "score": 0.5, "shown": True},
    {"year": 1969, "tags": ()},
    {},
]


def columns_of(rows):
    return Columns.of(attributes_to_json(row) for row in rows)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        (Compare("topic", Operator.EQUAL, "cats"), [0]),
        (Compare("topic", Operator.NOT_EQUAL, "cats"), [1]),
        (Not(Compare("topic", Operator.EQUAL, "cats")), [1, 2, 3]),
        (Compare("year", Operator.GREATER_OR_EQUAL, 1969.0), [0, 2]),
        (Compare("tags", Operator.EQUAL, "b"), [0]),
        (In("tags", ("x", "a")), [0]),
        (In("year", (1969, 1990)), [0, 2]),
        (Compare("shown", Operator.EQUAL, True), [1]),
        (Compare("shown", Operator.EQUAL, 1), []),
        (In("shown", (1, 0)), []),
        (Compare("unknown", Operator.EQUAL, 1), []),
        (Exists("year"), [0, 2]),
        (Not(Exists("year")), [1, 3]),
        (Exists("tags"), [0]),
        (Exists("unknown"), []),
        (AllOf(()), [0, 1, 2, 3]),
        (AnyOf(()), []),
        (AnyOf((Compare("score", Operator.LESS, 1), Compare("year", Operator.LESS, 1980))), [1, 2]),
    ],
)
def test_a_condition_holds_for_the_rows_it_names(condition, rows):
    assert np.flatnonzero(columns_of(ROWS).mask(condition)).tolist() == rows


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
BIG = st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
NUMBERS = (
    st.integers(-3, 3)
    | BIG
    | BIG.map(float)
    | st.integers(-6, 6).map(lambda half: half / 2)
    | st.floats(allow_nan=False, allow_infinity=False)
)
MOMENTS = st.datetimes(timezones=st.just(UTC)) | st.sampled_from(
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
    ]
)
VALUES = st.booleans() | NUMBERS | TEXTS | MOMENTS
NAMES = st.sampled_from(["a", "b.c-d"])
ATTRIBUTES = st.dictionaries(NAMES, VALUES | st.lists(TEXTS, max_size=3).map(tuple))
CONDITIONS = st.recursive(
    st.builds(Compare, NAMES, st.sampled_from(list(Operator)), VALUES | st.floats())
    | st.builds(In, NAMES, st.lists(VALUES, min_size=1, max_size=4).map(tuple))
    | st.builds(Exists, NAMES),
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(AllOf, st.lists(inner, max_size=3).map(tuple))
        | st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple))
    ),
    max_leaves=5,
)
PYTHON = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.LESS_OR_EQUAL: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_OR_EQUAL: operator.ge,
}


def kind_of(value):
    return float if type(value) is int else type(value)


def compares(how, value, wanted):
    if kind_of(value) is not kind_of(wanted):
        return how is Operator.NOT_EQUAL
    return PYTHON[how](value, wanted)


def holds(condition, attributes):
    match condition:
        case AllOf(filters):
            return all(holds(part, attributes) for part in filters)
        case AnyOf(filters):
            return any(holds(part, attributes) for part in filters)
        case Not(inner):
            return not holds(inner, attributes)
    value = attributes.get(condition.attribute, ())
    values = value if isinstance(value, tuple) else (value,)
    if isinstance(condition, Exists):
        return bool(values)
    if isinstance(condition, Compare):
        return any(compares(condition.operator, one, condition.value) for one in values)
    return any(compares(Operator.EQUAL, one, other) for one in values for other in condition.values)


@given(st.lists(ATTRIBUTES, max_size=10), CONDITIONS)
def test_a_mask_is_what_python_says_of_each_row(rows, condition):
    columns = columns_of(rows)
    expected = [holds(condition, attributes) for attributes in rows]
    assert columns.mask(condition).tolist() == expected
    stored = Columns.from_arrays(len(rows), columns.arrays())
    assert stored.mask(condition).tolist() == expected


@given(st.lists(ATTRIBUTES, max_size=10), st.lists(CONDITIONS, max_size=5))
def test_what_is_chosen_is_kept_for_each_condition(rows, conditions):
    cache = ChosenCache(columns_of(rows), few=5)
    for condition in conditions * 2:
        expected = [row for row, attributes in enumerate(rows) if holds(condition, attributes)]
        chosen = cache.get(condition)
        assert chosen.count == len(expected)
        bits = np.unpackbits(chosen.bits, count=len(rows), bitorder="little")
        assert np.flatnonzero(bits).tolist() == expected
        assert chosen.rows is None or chosen.rows.tolist() == expected


def test_true_and_one_are_different_conditions():
    cache = ChosenCache(columns_of(ROWS), few=5)
    assert cache.get(Compare("shown", Operator.EQUAL, 1)).count == 0
    assert cache.get(Compare("shown", Operator.EQUAL, True)).count == 1


def test_columns_of_other_rows_are_refused():
    arrays = columns_of(ROWS).arrays()
    with pytest.raises(DataLoss, match="topic"):
        Columns.from_arrays(1, arrays)
