import pytest

from mmesh import wire
from mmesh.errors import InvalidFilter
from mmesh.filter_language import parse_filter
from mmesh.filters import AllOf, AnyOf, Compare, In, Not, Operator, check_filter


def membership(values: int, start: int = 0) -> In:
    return In("year", tuple(range(start, start + values)))


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


TOO_LARGE = {
    "values of one set": membership(4097),
    "values of many sets": AnyOf(tuple(membership(17, n) for n in range(250))),
    "conditions": AnyOf(tuple(Compare("a", Operator.EQUAL, n) for n in range(256))),
    "strings of lists": AllOf(
        tuple(Compare("a", Operator.EQUAL, tuple(map(str, range(256)))) for _ in range(20))
    ),
    "text": In("a", tuple("x" * 4096 for _ in range(300))),
}


@pytest.mark.parametrize("condition", TOO_LARGE.values(), ids=list(TOO_LARGE))
def test_a_filter_is_bounded_as_a_whole(condition):
    with pytest.raises(InvalidFilter, match="too large"):
        check_filter(condition)


@pytest.mark.parametrize("name", sorted(set(TOO_LARGE) - {"text"}))
def test_a_message_of_a_filter_is_refused_as_a_whole(name):
    with pytest.raises(InvalidFilter, match="too large"):
        wire.filter_from_pb(wire.filter_to_pb(TOO_LARGE[name]))


def test_values_are_counted_before_any_is_converted():
    message = wire.filter_to_pb(membership(4097))
    getattr(message, "in").values[0].Clear()  # which cannot be converted
    with pytest.raises(InvalidFilter, match="too large"):
        wire.filter_from_pb(message)


def test_a_message_of_many_bytes_is_refused():
    with pytest.raises(InvalidFilter, match="too large"):
        wire.filter_from_pb(wire.filter_to_pb(Compare("a", Operator.EQUAL, "x" * (3 << 20))))


def test_the_largest_filter_is_taken():
    condition = AnyOf((*(membership(4096 // 256, n) for n in range(254)), membership(32)))
    check_filter(condition)
    assert wire.filter_from_pb(wire.filter_to_pb(condition)) == condition


def test_a_list_in_a_set_is_refused():
    condition = In("a", (("x", "y"),))
    with pytest.raises(InvalidFilter, match="list in a set"):
        check_filter(condition)
    with pytest.raises(InvalidFilter, match="list in a set"):
        wire.filter_from_pb(wire.filter_to_pb(condition))


def test_the_filters_of_a_batch_are_bounded_together_and_equal_ones_count_once():
    read, same = wire.FilterReader(), wire.filter_to_pb(membership(4000))
    assert len({id(read(same)) for _ in range(256)}) == 1
    read(wire.filter_to_pb(membership(4000, 1)))
    with pytest.raises(InvalidFilter, match="one too many"):
        read(wire.filter_to_pb(membership(4000, 2)))
    assert read(same) == membership(4000)


def test_what_is_wrong_counts_among_the_filters_of_a_batch():
    read, wrong = wire.FilterReader(), wire.filter_to_pb(AnyOf((membership(4000), Not(AllOf(())))))
    getattr(wrong.any_of.filters[1], "not").Clear()  # empty, which is seen last
    for _ in range(3):
        with pytest.raises(InvalidFilter, match="is empty"):
            read(wrong)
    with pytest.raises(InvalidFilter, match="one too many"):
        read(wrong)


def test_filters_of_a_batch_that_python_takes_for_equal_are_kept_apart():
    read = wire.FilterReader()
    yes, one = (read(wire.filter_to_pb(Compare("a", Operator.EQUAL, v))) for v in (True, 1))
    assert (yes.value, one.value) == (True, 1)
    assert type(yes.value) is not type(one.value)
