import pytest

from mmesh.errors import (
    DeadlineExceeded,
    Draining,
    InvalidField,
    LogUnavailable,
    Overloaded,
    StaleReplica,
    Unavailable,
)
from services.gateway.circuit_breaker import CircuitBreaker

AWAY, LATE = Unavailable("away"), DeadlineExceeded("late")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("error", "given_s", "opens", "casts_doubt"),
    [
        (AWAY, 0.0, True, True),
        (Draining("it ends"), 5.0, True, True),
        (LATE, 1.0, True, True),
        (LATE, 0.9, False, True),
        (StaleReplica("behind"), 5.0, False, False),
        (LogUnavailable("the log is away"), 5.0, False, False),
        (Overloaded("full"), 5.0, False, False),
        (InvalidField("limit", "is odd"), 5.0, False, False),
    ],
    ids=lambda value: getattr(value, "reason", str(value)),
)
def test_what_is_the_servers_own_failure_opens_the_circuit(error, given_s, opens, casts_doubt):
    circuit = CircuitBreaker(least_s=1.0)
    assert circuit.note(error, given_s) is casts_doubt
    assert circuit.is_closed is not opens
    assert circuit.error is (error if opens else None)


def test_an_open_circuit_closes_after_its_time():
    clock = Clock()
    circuit = CircuitBreaker(open_s=2.0, least_s=0.0, timer=clock)
    circuit.note(AWAY, 1.0)
    clock.now = 1.9
    assert circuit.error is AWAY
    circuit.note(LATE, 1.0)  # the time begins again
    clock.now = 3.8
    assert not circuit.is_closed
    clock.now = 3.9
    assert circuit.is_closed


def test_a_circuit_without_a_time_is_closed_by_an_answer_only():
    clock = Clock()
    circuit = CircuitBreaker(least_s=0.0, timer=clock)
    assert circuit.is_closed
    circuit.open(AWAY)
    clock.now = 1e9
    assert circuit.error is AWAY
    circuit.close()
    assert circuit.is_closed
