import numpy as np

from services.index.view.recent_queries import ENOUGH, KEPT, RecentQueries


def rows(first, count):
    return np.arange(first, first + count, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)


def test_few_queries_are_no_sample_and_repeated_ones_count_once():
    recent = RecentQueries(2)
    assert recent.sample() is None
    recent.note(rows(1, ENOUGH - 1))
    recent.note(rows(1, ENOUGH - 1))
    assert recent.sample() is None
    recent.note(rows(ENOUGH, 1))
    np.testing.assert_array_equal(recent.sample(), rows(1, ENOUGH))


def test_the_last_ones_are_kept_however_they_came():
    recent = RecentQueries(2)
    for start in range(1, 5 * KEPT, 7):
        recent.note(rows(start, 7))
    recent.note(rows(10_000, KEPT + 50))
    np.testing.assert_array_equal(recent.sample(), rows(10_050, KEPT))
