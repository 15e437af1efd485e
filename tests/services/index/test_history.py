"""What a view knows of its own history without asking the log."""

import pytest

from services.index.point import Point
from services.index.view.history import KEPT, KEPT_CHECKED, History


def commits(first, last, mark=""):
    """Return commits of three writes each."""
    return [Point(seq, f"{mark}{seq}") for seq in range(first, last + 1, 3)]


@pytest.fixture
def history():
    history = History()
    history.passed(commits(3, 12))
    return history


def test_writes_in_the_middle_of_a_commit_have_its_stamp(history):
    assert [history.has(Point(seq, "6")) for seq in (3, 4, 5, 6, 7)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_what_it_has_not_passed_it_does_not_know(history):
    assert not history.has(Point(2, "3")), "the first commit may have begun after this write"
    assert not history.has(Point(13, "12"))
    assert not history.has(Point(6, ""))
    assert not History().has(Point(1, "1"))


def test_a_commit_that_two_pages_share_is_there_once(history):
    history.passed(commits(12, 18))
    assert all(history.has(point) for point in commits(3, 18))


def test_only_the_newest_are_kept_and_those_with_a_gap_before_them_stand_alone(history):
    history.passed(commits(15, 3 * KEPT))
    assert history.has(Point(3 * KEPT, f"{3 * KEPT}"))
    later = commits(9 * KEPT, 12 * KEPT)
    history.passed(later)
    assert not history.has(Point(3 * KEPT, f"{3 * KEPT}"))
    assert not history.has(Point(9 * KEPT - 1, f"{9 * KEPT}"))
    assert history.has(later[-1])


def test_what_the_log_was_asked_about_is_remembered_up_to_a_bound(history):
    for seq in range(KEPT_CHECKED + 1):
        history.checked(Point(seq, "asked"))
    assert history.has(Point(KEPT_CHECKED, "asked"))
    assert not history.has(Point(0, "asked"))
