"""The filter language reads what people write, says what it cannot, and prints what it reads."""

import string
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmesh.errors import InvalidFilter
from mmesh.filter_language import MAX_NESTING, format_filter, parse_filter
from mmesh.filters import AllOf, AnyOf, Compare, Exists, In, Not, Operator
from mmesh.values.timestamps import to_utc

EQUAL = Operator.EQUAL
MIDNIGHT = datetime(2024, 1, 31, tzinfo=UTC)
NOON = datetime(2024, 1, 31, 12, 30, 15, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("""name = 'O''Brien'""", "O'Brien"),
        ("""name = 'O\\'Brien'""", "O'Brien"),
        ('''name = "say ""no"""''', 'say "no"'),
        (r'''name = "C:\reports\new"''', r"C:\reports\new"),
        (r'''name = "C:\\reports\\"''', "C:\\reports\\"),
        ("""name = 'a "quoted" word'""", 'a "quoted" word'),
        ('name = ""', ""),
        ("name = '#1 {x} $y'", "#1 {x} $y"),
        ('name = "zwei\nZeilen"', "zwei\nZeilen"),
        ('name = "and or not in"', "and or not in"),
        ('name="naïve 日本 🐈"', "naïve 日本 🐈"),
    ],
)
def test_texts_are_quoted_as_people_do(expression, text):
    assert parse_filter(expression) == Compare("name", EQUAL, text)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Year >= 1969 And NOT sold = TRUE",
         AllOf((Compare("Year", Operator.GREATER_OR_EQUAL, 1969),
                Not(Compare("sold", EQUAL, True))))),
        ("a=1 or b=2 and c=3",
         AnyOf((Compare("a", EQUAL, 1), AllOf((Compare("b", EQUAL, 2), Compare("c", EQUAL, 3)))))),
        ("(a=1 or b=2) and c=3",
         AllOf((AnyOf((Compare("a", EQUAL, 1), Compare("b", EQUAL, 2))), Compare("c", EQUAL, 3)))),
        ("not (not a = 1)", Not(Not(Compare("a", EQUAL, 1)))),
        ("price<-.5e3", Compare("price", Operator.LESS, -500.0)),
        ("n = 9223372036854775807", Compare("n", EQUAL, 2**63 - 1)),
        ("n = -9223372036854775808", Compare("n", EQUAL, -(2**63))),
        ("file-name.ext = 'a'", Compare("file-name.ext", EQUAL, "a")),
        ("`and` = 1 and `a ``b\\` c` = 2",
         AllOf((Compare("and", EQUAL, 1), Compare("a `b` c", EQUAL, 2)))),
        ("kind in ['a', \"b\",]", In("kind", ("a", "b"))),
        ("kind in {1, 2}", In("kind", (1, 2))),
        ("kind in ('a')", In("kind", ("a",))),
        ("kind not in (1)", Not(In("kind", (1,)))),
        ("tags = ('a', 'b')", Compare("tags", EQUAL, ("a", "b"))),
        ("  a\t=\n1  ", Compare("a", EQUAL, 1)),
        ("year is null", Not(Exists("year"))),
        ("year IS NOT NULL", Exists("year")),
        ("exists year", Exists("year")),
        ("not exists(`my year`)", Not(Exists("my year"))),
        ("taken >= 2024-01-31", Compare("taken", Operator.GREATER_OR_EQUAL, MIDNIGHT)),
        ("taken = 2024-01-31T00:00Z and n=1", AllOf((Compare("taken", EQUAL, MIDNIGHT),
                                                     Compare("n", EQUAL, 1)))),
        ("taken in (2024-01-31T01:00:00+01:00)", In("taken", (MIDNIGHT,))),
        ("taken<2024-01-31T12:30:15.5z", Compare("taken", Operator.LESS, NOON)),
    ],
)  # fmt: skip
def test_an_expression_reads_as_it_looks(expression, expected):
    assert parse_filter(expression) == expected


@pytest.mark.parametrize(
    ("expression", "column", "says"),
    [
        ("topic = cats", 9, 'cats is a text without quotes; write topic = "cats"'),
        ("topic", 6, "found the end where an operator is due"),
        ("topic =", 8, "found the end where a value is due"),
        ("", 1, "found the end where the name of an attribute is due"),
        ("= 3", 1, "found = where the name of an attribute is due"),
        ("a is 3", 6, "found 3 where null is due"),
        ("a = null", 5, "write a is null"),
        ("a != NULL", 6, "write a is null, or a is not null"),
        ("day >= 2024-13-01", 8, "'2024-13-01' is no date or time"),
        ("day >= 2024-1-1", 8, "write it like 2024-01-31"),
        ("a = 1 && b = 2", 7, "write and"),
        ("a = 1 || b = 2", 7, "write or"),
        ("!a = 1", 1, "write not"),
        ("a = 1 b = 2", 7, "found b where `and`, `or` or the end is due"),
        ("a < b < c", 5, 'write a = "b"'),
        ("a = 'open", 5, "' is never closed"),
        (r'a = "C:\"', 5, "is never closed; a backslash before a quote is written"),
        ("(a = 1", 7, "found the end where ) is due"),
        ("a = 1)", 6, "found ) where"),
        ("a in (1, (2))", 10, "a list holds no lists"),
        ("a in (1 2)", 9, "found 2 where , is due"),
        ("a not = 3", 7, "where an operator is due"),
        ("n = 3d", 5, "found 3d where a value is due"),
        ("n = 1.2.3", 5, "found 1.2.3 where a value is due"),
        ("n = 99999999999999999999", 5, "does not fit into 64 bits"),
        ("n = 9223372036854775808", 5, "does not fit into 64 bits"),
        ("n > -9223372036854775809", 5, "does not fit into 64 bits"),
        ("f(x) = 1", 2, "where an operator is due"),
        ("__import__('os').system('x') = 1", 11, "where an operator is due"),
        ("a = not", 5, "where a value is due"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(expression, column, says):
    with pytest.raises(InvalidFilter) as refusal:
        parse_filter(expression)
    assert f"at column {column}:" in str(refusal.value)
    assert says in str(refusal.value)
    assert "write it like" in str(refusal.value)


@pytest.mark.parametrize("opening", ["(", "not "])
def test_nesting_is_bounded(opening):
    closing = ")" * (opening == "(")
    fine = MAX_NESTING - 1
    parse_filter(opening * fine + "a = 1" + closing * fine)
    with pytest.raises(InvalidFilter, match="nested too deep"):
        parse_filter(opening * 100_000 + "a = 1")


NAMES = st.one_of(
    st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=9),
    st.text(min_size=1, max_size=5),
    st.sampled_from(["and", "NOT", "In", "true", "is", "null", "exists"]),
    st.sampled_from(["2024-01-31", "a b", "`", "\\"]),
)
SINGLE = st.one_of(
    st.text(max_size=9),
    st.text("\\\"'` \n", max_size=6),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.datetimes().map(to_utc),
)
VALUES = st.one_of(SINGLE, st.lists(st.text(max_size=5), max_size=3).map(tuple))
CONDITIONS = st.one_of(
    st.builds(Compare, NAMES, st.sampled_from(Operator), VALUES),
    st.builds(In, NAMES, st.lists(SINGLE, max_size=4).map(tuple)),
    st.builds(Exists, NAMES),
)
FILTERS = st.recursive(
    CONDITIONS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(AllOf, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


def alike(one, other) -> bool:
    """Compare so that 1, 1.0 and True are not the same."""
    return one == other and repr(one) == repr(other)


@given(FILTERS)
@example(Compare("a", EQUAL, "\\"))
@example(Compare("a", EQUAL, 1e300))
@example(Compare("a", EQUAL, -0.0))
def test_what_is_printed_is_read_again(condition):
    assert alike(parse_filter(format_filter(condition)), condition)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(expression):
    try:
        condition = parse_filter(expression)
    except InvalidFilter:
        return
    assert alike(parse_filter(format_filter(condition)), condition)


def test_a_filter_of_one_is_printed_as_that_one():
    assert format_filter(AllOf((AnyOf((Compare("a", EQUAL, 1),)),))) == "a = 1"
