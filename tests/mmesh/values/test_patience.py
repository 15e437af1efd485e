"""Patience runs while whoever is asked does not answer, and only then."""

from mmesh.values.patience import Patience


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_in_which_nothing_was_asked_does_not_count():
    clock = Clock()
    patience = Patience(60, clock)
    for clock.now in (1000, 1059):
        assert not patience.is_over_after_failure()
    patience.answered()
    for clock.now in (5000, 5059):
        assert not patience.is_over_after_failure()
    clock.now = 5060
    assert patience.is_over_after_failure()


def test_no_patience_is_over_at_the_first_failure():
    assert Patience(0, Clock()).is_over_after_failure()
