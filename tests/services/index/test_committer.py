"""Group commit, with a log that can be held up."""

import asyncio
import threading

import pytest
from prometheus_client import REGISTRY

from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from mmesh.errors import CollectionNotFound, LogUnavailable, Overloaded
from mmesh.vectors import pack
from services.index.log.committer import MAX_GROUP_ROWS, Committer
from services.index.log.ledger import Upsert
from services.index.log.log import Log
from services.index.log.rows import NewCandidate
from services.index.slots import slot_of


def upsert(candidate_id, collection="c"):
    vector = pack([[1.0, 0.0]])
    new = NewCandidate(candidate_id, slot_of(candidate_id), Modality.TEXT, "", "[]", vector)
    return Upsert(collection, [new], lambda types: types)


class HeldLog:
    """A real log whose writes wait for a signal; it notes the sizes of groups."""

    def __init__(self, log):
        self._log, self.go, self.groups = log, threading.Event(), []
        self.failure = None
        self.outcomes = None
        """Answered instead of the log's."""

    def write(self, writes):
        assert self.go.wait(10)
        self.groups.append(len(writes))
        if self.failure is not None:
            raise self.failure
        outcomes = self._log.write(writes)
        return outcomes if self.outcomes is None else self.outcomes


@pytest.fixture
def held(tmp_path):
    log = Log(f"sqlite:///{tmp_path / 'log.db'}")
    log.create_collection("c", 2, "model", CollectionSettings())
    held = HeldLog(log)
    yield held
    held.go.set()
    log.close()


async def test_what_queues_while_the_log_is_busy_shares_a_transaction(held):
    async with Committer(held, 100) as committer:
        first = asyncio.create_task(committer.write(upsert("a"), 1))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(committer.write(upsert(f"b{n}"), 1)) for n in range(20)]
        await asyncio.sleep(0.05)
        held.go.set()
        tokens = [(await task).token for task in (first, *others)]
    assert held.groups == [1, 20]
    assert [int(t.partition(":")[2]) for t in tokens] == list(range(1, 22))


async def test_a_refused_write_fails_alone(held):
    held.go.set()
    async with Committer(held, 100) as committer:
        outcomes = await asyncio.gather(
            committer.write(upsert("a"), 1),
            committer.write(upsert("b", "unknown"), 1),
            committer.write(upsert("c"), 1),
            return_exceptions=True,
        )
    assert isinstance(outcomes[1], CollectionNotFound)
    assert [outcomes[0].count, outcomes[2].count] == [1, 1]


async def test_a_log_that_fails_fails_every_caller_with_an_error_of_its_own(held):
    held.failure = LogUnavailable("away")
    held.go.set()
    async with Committer(held, 100) as committer:
        writes = [committer.write(upsert(f"a{n}"), 1) for n in range(3)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(one, LogUnavailable) for one in outcomes)
        assert len(set(map(id, outcomes))) == 3
        held.failure = None
        assert (await committer.write(upsert("b"), 1)).count == 1


async def test_a_queue_that_is_full_of_living_writes_is_refused_and_groups_are_bounded(held):
    async with Committer(held, 3) as committer:
        running = asyncio.create_task(committer.write(upsert("a"), 1))
        await asyncio.sleep(0.05)
        rows = MAX_GROUP_ROWS // 2 + 1
        waiting = [asyncio.create_task(committer.write(upsert(f"b{n}"), rows)) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 writes wait"):
            await committer.write(upsert("c"), 1)
        waiting.pop().cancel()
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(committer.write(upsert("d"), rows)))
        await asyncio.sleep(0)
        held.go.set()
        await asyncio.gather(running, *waiting)
    assert held.groups == [1, 1, 1, 1]


async def test_a_write_whose_caller_went_away_while_it_waited_is_not_made(held):
    async with Committer(held, 100) as committer:
        running = asyncio.create_task(committer.write(upsert("a"), 1))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(committer.write(upsert("b"), 1))
        kept = asyncio.create_task(committer.write(upsert("c"), 1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        held.go.set()
        assert (await running).token.endswith(":1")
        assert (await kept).token.endswith(":2")
    assert held.groups == [1, 1]


async def test_what_is_written_counts_though_its_caller_went_away_meanwhile(held):
    def written():
        return REGISTRY.get_sample_value("mmesh_index_written_total")

    before = written()
    async with Committer(held, 100) as committer:
        gone = asyncio.create_task(committer.write(upsert("a"), 1))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0)
        held.go.set()
        await committer.write(upsert("b"), 1)
    assert held.groups == [1, 1]
    assert written() == before + 2


@pytest.mark.parametrize("outcomes", [[], [None]], ids=["too few", "of no known kind"])
async def test_a_defect_of_the_log_leaves_nobody_waiting(held, outcomes):
    held.go.set()
    held.outcomes = outcomes
    async with Committer(held, 100) as committer:
        with pytest.raises((ValueError, AttributeError)):
            await asyncio.wait_for(committer.write(upsert("a"), 1), 5)
        held.outcomes = None
        assert (await committer.write(upsert("b"), 1)).count == 1


async def test_whatever_the_log_raises_reaches_the_callers_and_the_next_write_is_made(held, error):
    held.go.set()
    held.failure = error
    async with Committer(held, 100) as committer:
        with pytest.raises(type(error)):
            await asyncio.wait_for(committer.write(upsert("a"), 1), 5)
        held.failure = None
        assert (await committer.write(upsert("b"), 1)).count == 1
