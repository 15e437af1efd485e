"""The nearest name, at a bounded cost."""

import itertools

import pytest

from mmesh.values.spelling import nearest

KNOWN = ["year", "topic", "price", "Sold", "category"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("yaer", "year"), ("YEAR", "year"), ("sold", "Sold"), ("catgory", "category"),
     ("prices", "price"), ("xyz", ""), ("", ""), ("y" * 10_000, "")],
)  # fmt: skip
def test_the_nearest_name_is_meant(name, meant):
    assert nearest(name, KNOWN) == meant


def test_names_that_anybody_wrote_are_compared_up_to_a_bound():
    crowd = ["a" * 31 + chr(0x4E00 + n) for n in range(20_000)]
    assert nearest("a" * 32, ["b" * 100_000, *crowd]) in crowd
    assert nearest("a" * 33, crowd) == ""
    assert nearest("aaa", ["aab", "xyz", *crowd]) == "aab"
    assert nearest("yaer", itertools.repeat("year")) == "year"
