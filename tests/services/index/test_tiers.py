"""The policy of merging: few segments, few builds of each row."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.index.build.tiers import Merge, Sizes, next_merge, whole_merge


def sizes(segments=(), dead=None, full=0, growing=0):
    return Sizes(segments, dead or [0] * len(segments), full, growing)


@pytest.mark.parametrize("is_quiet", [True, False])
def test_nothing_is_merged_where_little_waits(is_quiet):
    assert next_merge(sizes([100_000], growing=400), is_quiet=is_quiet) is None
    assert next_merge(sizes(growing=1000), is_quiet=is_quiet) is None


def test_full_deltas_take_segments_of_their_size_along():
    merge = next_merge(sizes([100_000, 8000, 16_000], full=4096), is_quiet=False)
    assert merge == Merge((1, 2), deltas=True, growing=False)


def test_a_quiet_partition_becomes_one_segment():
    merge = next_merge(sizes([100_000, 8000], growing=500), is_quiet=True)
    assert merge == Merge((0, 1), deltas=True, growing=True)
    assert next_merge(sizes([1_000_000], growing=4000), is_quiet=True) is None


def test_a_segment_with_many_dead_rows_is_built_anew():
    merge = next_merge(sizes([100_000, 50_000], dead=[0, 20_000]), is_quiet=False)
    assert merge == Merge((1,), deltas=False, growing=False)


def test_a_whole_merge_takes_everything_even_where_it_is_one_segment_already():
    assert whole_merge(sizes()) is None
    assert whole_merge(sizes([10])) == Merge((0,), deltas=True, growing=True)
    assert whole_merge(sizes([10, 5])) == Merge((0, 1), deltas=True, growing=True)
    assert whole_merge(sizes(growing=3)) == Merge((), deltas=True, growing=True)


@given(st.lists(st.integers(1, 4), min_size=50, max_size=400))
def test_a_row_is_built_about_log_n_times_and_segments_stay_few(arrivals):
    """Full deltas of 1,000 rows come, now and then several at a time."""
    segments, built = [], 0
    for deltas in arrivals:
        merge = next_merge(sizes(segments, full=1000 * deltas), is_quiet=False)
        new = 1000 * deltas + sum(segments[n] for n in merge.segments)
        segments = [s for n, s in enumerate(segments) if n not in merge.segments] + [new]
        built += new
    doublings = math.log2(sum(segments) / 1000)
    assert sum(segments) == 1000 * sum(arrivals)
    assert len(segments) <= 2 + doublings
    assert built <= (2 + 1.5 * doublings) * sum(segments)
