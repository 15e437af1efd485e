"""Failover: who is asked next, with how much time, and when nobody is."""

from __future__ import annotations

import pytest

from mmesh.errors import DeadlineExceeded, InvalidField, MmeshError, Unavailable
from mmesh.serving.deadline import Deadline
from services.gateway.rpc import first_answer

AWAY, WRONG = Unavailable("away"), InvalidField("limit", "is odd")


class Servers:
    """Servers by name that answer, or fail, as told; say whom was asked with how much time."""

    def __init__(self, *outcomes):
        self.outcomes = dict(enumerate(outcomes))
        self.asked, self.failed = {}, []

    async def ask(self, server, deadline):
        self.asked[server] = deadline.remaining()
        outcome = self.outcomes[server]
        if isinstance(outcome, MmeshError):
            raise outcome
        return outcome

    def goes_on(self, server, error):
        self.failed.append(server)
        return isinstance(error, Unavailable | DeadlineExceeded)

    async def answer(self, seconds=100.0):
        deadline = Deadline.after(seconds)
        return await first_answer(list(self.outcomes), self.ask, deadline, self.goes_on)


async def test_the_first_server_that_answers_is_the_last_one_asked():
    servers = Servers(AWAY, "second", "third")
    assert await servers.answer() == "second"
    assert (list(servers.asked), servers.failed) == ([0, 1], [0])


async def test_each_server_but_the_last_gets_its_part_of_what_is_left():
    servers = Servers(AWAY, AWAY, AWAY, AWAY, "last")
    assert await servers.answer(120.0) == "last"
    parts = [round(seconds) for seconds in servers.asked.values()]
    assert parts == [40, 40, 40, 60, 120]  # nobody spent any of it


async def test_an_error_of_the_request_is_not_tried_elsewhere():
    servers = Servers(AWAY, WRONG, "third")
    with pytest.raises(InvalidField):
        await servers.answer()
    assert (list(servers.asked), servers.failed) == ([0, 1], [0, 1])


async def test_when_all_fail_the_last_error_is_raised_and_each_failure_is_heard_of():
    servers = Servers(AWAY, DeadlineExceeded("late"))
    with pytest.raises(DeadlineExceeded):
        await servers.answer()
    assert servers.failed == [0, 1]


async def test_nobody_is_asked_once_the_time_is_up():
    servers = Servers(AWAY, "second")
    with pytest.raises(Unavailable):
        await servers.answer(0.0)
    assert list(servers.asked) == [0]


async def test_without_servers_there_is_no_answer():
    with pytest.raises(Unavailable, match="no server"):
        await Servers().answer()
