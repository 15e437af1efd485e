import pytest

from mmesh.errors import InvalidFilter
from mmesh.filter_language import parse_filter
from mmesh.filters import AllOf, AnyOf, Compare, In, Not, Operator, check_filter


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('topic = "cats"', Compare("topic", Operator.EQUAL, "cats")),
        ("year>=1969", Compare("year", Operator.GREATER_OR_EQUAL, 1969)),
        ("score <> 0.5", Compare("score", Operator.NOT_EQUAL, 0.5)),
        ("shown == true", Compare("shown", Operator.EQUAL, True)),
        ("year < -3", Compare("year", Operator.LESS, -3)),
        ('kind in ("a", "b")', In("kind", ("a", "b"))),
        ('kind NOT IN ("a", "b")', Not(In("kind", ("a", "b")))),
        ("a.b = 1", Compare("a.b", Operator.EQUAL, 1)),
        ("`odd-name` = 1", Compare("odd-name", Operator.EQUAL, 1)),
        ('topic = "a = b AND c"', Compare("topic", Operator.EQUAL, "a = b AND c")),
        (
            "a = 1 AND (b = 2 OR NOT c = 3)",
            AllOf(
                (
                    Compare("a", Operator.EQUAL, 1),
                    AnyOf((Compare("b", Operator.EQUAL, 2), Not(Compare("c", Operator.EQUAL, 3)))),
                )
            ),
        ),
    ],
)
def test_an_expression_reads_as_it_looks(expression, expected):
    assert parse_filter(expression) == expected


@pytest.mark.parametrize(
    "expression",
    ["", "topic", "topic =", "= 3", "topic ~ 3", "f(x) = 1", "a < b < c", "a is 3", "a = b",
     "(" * 1000 + "a = 1" + ")" * 1000, "__import__('os').system('x') = 1"],
)  # fmt: skip
def test_what_is_no_filter_is_refused_with_an_example(expression):
    with pytest.raises(InvalidFilter, match=r"write it like|cannot be read"):
        parse_filter(expression)


def test_a_filter_nested_too_deep_is_refused():
    condition = Compare("a", Operator.EQUAL, 1)
    for _ in range(1000):
        condition = Not(condition)
    with pytest.raises(InvalidFilter, match="too large"):
        check_filter(condition)


def test_ordering_booleans_is_refused():
    with pytest.raises(InvalidFilter, match="order"):
        check_filter(Compare("a", Operator.LESS, True))


def test_an_empty_set_is_refused():
    with pytest.raises(InvalidFilter, match="0 values"):
        check_filter(In("a", ()))
