import pytest

from mmesh import Candidate, Content
from mmesh.collections import CollectionLimits
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.filters import AllOf, Compare, Not, Operator
from services.index.limits import check_candidates, check_depth, check_limit

CANDIDATES = [
    Candidate("a", Content.of("x")),
    Candidate("b", Content.of("y" * 100), {"one": 1, "two": ("2", "zwei")}),
]


def test_without_limits_everything_goes():
    check_candidates(CANDIDATES, CollectionLimits())


def test_the_first_candidate_over_a_limit_is_named():
    with pytest.raises(InvalidField, match=r"candidates\[1\]\.attributes has 2 entries"):
        check_candidates(CANDIDATES, CollectionLimits(max_attributes=1))
    with pytest.raises(InvalidField, match=r"candidates\[1\] has 11[0-9] bytes"):
        check_candidates(CANDIDATES, CollectionLimits(max_candidate_bytes=100))
    check_candidates(CANDIDATES, CollectionLimits(max_candidate_bytes=200, max_attributes=2))


@pytest.mark.parametrize(("limit", "most"), [(0, 0), (-1, 0), (1001, 0), (51, 50)])
def test_a_limit_outside_is_refused(limit, most):
    with pytest.raises(InvalidField, match="limit is"):
        check_limit(limit, CollectionLimits(max_limit=most))
    check_limit(50, CollectionLimits(max_limit=50))


def test_depth_counts_the_conditions_above():
    leaf = Compare("a", Operator.EQUAL, 1)
    deep = AllOf((leaf, Not(AllOf((leaf,)))))
    check_depth(leaf, CollectionLimits(max_filter_depth=1))
    check_depth(deep, CollectionLimits(max_filter_depth=4))
    check_depth(deep, CollectionLimits())
    with pytest.raises(InvalidFilter, match="nested 4 deep; this collection allows 3"):
        check_depth(deep, CollectionLimits(max_filter_depth=3))
