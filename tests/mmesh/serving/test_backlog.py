"""What shares a batch, beside an exhaustive search; and the backlog, beside a plain list."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mmesh.errors import DeadlineExceeded
from mmesh.serving.batching.backlog import Backlog, BatchShape, Priority, Work, alike, best_run
from mmesh.serving.batching.coalesce import Ticket

costs = st.integers(1, 60)
shapes = st.builds(
    BatchShape,
    max_items=st.integers(1, 6),
    max_cost=st.integers(1, 200),
    pass_cost=st.integers(0, 40),
)


def work_in_time(run, shape):
    """Return the share of a batch of these costs that is work, not padding or the pass itself."""
    return sum(run) / (max(run) * len(run) + shape.pass_cost)


def is_allowed(run, shape):
    fits = len(run) <= shape.max_items and max(run) * len(run) <= shape.max_cost
    return fits and max(run) - min(run) <= shape.pass_cost


@given(st.lists(costs, min_size=1, max_size=12).map(sorted), st.data(), shapes)
def test_no_run_around_the_first_item_does_more_work_in_its_time(ordered, data, shape):
    first = data.draw(st.integers(0, len(ordered) - 1))
    chosen = best_run(ordered, first, shape)
    assert chosen.start <= first < chosen.stop
    runs = [
        ordered[start:stop]
        for start in range(first + 1)
        for stop in range(first + 1, len(ordered) + 1)
        if is_allowed(ordered[start:stop], shape)
    ]
    alone = [ordered[first]]
    best = max(work_in_time(run, shape) for run in [*runs, alone])
    assert work_in_time(ordered[chosen], shape) >= best - 1e-12
    assert ordered[chosen] == alone or is_allowed(ordered[chosen], shape)


@given(st.lists(costs, min_size=1, max_size=12).map(sorted), st.data(), shapes)
def test_a_batch_is_never_slower_than_its_items_one_by_one(ordered, data, shape):
    run = ordered[best_run(ordered, data.draw(st.integers(0, len(ordered) - 1)), shape)]
    together = max(run) * len(run) + shape.pass_cost
    assert together <= sum(cost + shape.pass_cost for cost in run)


packed_shapes = st.builds(
    BatchShape,
    max_items=st.integers(1, 6),
    max_cost=st.integers(1, 200),
    packed=st.just(True),
)


@given(st.lists(costs, min_size=1, max_size=12).map(sorted), st.data(), packed_shapes)
def test_a_packed_batch_holds_the_nearest_costs_until_it_is_full(ordered, data, shape):
    first = data.draw(st.integers(0, len(ordered) - 1))
    chosen = alike(ordered, first, shape)
    assert chosen.start <= first < chosen.stop
    run, rest = ordered[chosen], ordered[: chosen.start] + ordered[chosen.stop :]
    assert len(run) == 1 or (len(run) <= shape.max_items and sum(run) <= shape.max_cost)
    if rest and len(run) < shape.max_items:
        nearest = min(abs(cost - ordered[first]) for cost in rest)
        assert max(abs(cost - ordered[first]) for cost in run) <= nearest
        closest = [cost for cost in rest if abs(cost - ordered[first]) == nearest]
        assert sum(run) + max(closest) > shape.max_cost


class BacklogBesideAList(RuleBasedStateMachine):
    """Work comes, leaves, expires and is taken, in any order."""

    SHAPE = BatchShape(max_items=3, max_cost=40, pass_cost=8)
    PATIENCE_S, BULK_PATIENCE_S = 30.0, 5.0

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.backlog = Backlog(self.PATIENCE_S, self.BULK_PATIENCE_S)
        self.waiting = []
        self.now = 100.0
        self.bulk_served = self.now

    def teardown(self):
        self.loop.close()

    @rule(
        group=st.sampled_from("ab"),
        cost=costs,
        priority=st.sampled_from(Priority),
        lifetime=st.sampled_from([0.5, 3.0, 20.0, 1000.0]),
    )
    def add(self, group, cost, priority, lifetime):
        if priority is Priority.BULK and not self.of(Priority.BULK):
            self.bulk_served = self.now
        ticket = Ticket(self.now + lifetime, self.loop.create_future())
        work = Work("item", group, cost, ticket, priority, since=self.now)
        self.backlog.add(work)
        self.waiting.append(work)

    @rule(seconds=st.sampled_from([0.1, 2.0, 10.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_caller_leaves(self, data):
        work = data.draw(st.sampled_from(self.waiting))
        work.ticket.outcome.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.waiting.remove(work)

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self):
        turn = self.backlog.turn(self.now)
        bulk_is_due = self.now - self.bulk_served > self.BULK_PATIENCE_S
        first = [Priority.BULK, Priority.INTERACTIVE] if bulk_is_due else list(Priority)
        assert turn is next(priority for priority in first if self.of(priority))
        batch = self.backlog.take(turn, self.SHAPE, self.now)
        if batch and turn is Priority.BULK:
            self.bulk_served = self.now
        self.check_batch(batch, turn)
        late = [work for work in self.waiting if work.ticket.outcome.done()]
        for work in late:
            assert work.ticket.expires_at <= self.now
            assert isinstance(work.ticket.outcome.exception(), DeadlineExceeded)
        self.waiting = [work for work in self.waiting if work not in batch and work not in late]

    def check_batch(self, batch, turn):
        if not batch:
            return
        (group,) = {work.group for work in batch}
        assert {work.priority for work in batch} == {turn}
        assert all(work.ticket.is_wanted(self.now) for work in batch)
        assert len(batch) == 1 or is_allowed([work.cost for work in batch], self.SHAPE)
        rivals = [
            work
            for work in self.of(turn)
            if work.group == group and work.ticket.is_wanted(self.now)
        ]
        assert min(rivals, key=self.due) in batch

    def due(self, work):
        return min(work.ticket.expires_at, work.since + self.PATIENCE_S)

    def of(self, priority):
        return [work for work in self.waiting if work.priority is priority]

    @invariant()
    def accounts_are_right(self):
        assert len(self.backlog) == len(self.waiting)
        for priority in Priority:
            assert self.backlog.cost(priority) == sum(work.cost for work in self.of(priority))


def test_the_backlog_keeps_what_a_list_keeps():
    run_state_machine_as_test(BacklogBesideAList)


async def test_work_that_cannot_be_sorted_is_refused_and_leaves_nothing():
    backlog = Backlog()
    with pytest.raises(TypeError):
        backlog.add(Work("item", ["no group"], 1, Ticket()))
    assert (len(backlog), backlog.cost(*Priority)) == (0, 0)
