"""Following the log: collections go their own way, whatever happens to one of them."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh.content import Modality
from mmesh.errors import (
    CollectionNotFound,
    DataLoss,
    InternalError,
    LogUnavailable,
    MemoryFull,
    StaleReplica,
)
from mmesh.serving.backoff import Pauses
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from services.index.view import follower as module
from services.index.view import loader
from services.index.view.loader import TAIL_ROWS, LogAlone
from services.index.view.memory import MemoryBudget

AT_ONCE = Pauses(first_s=0.001, longest_s=0.001)


def name_of(error):
    return type(error).__name__


def failures(error, of="tail"):
    labels = {"error": name_of(error)}
    return REGISTRY.get_sample_value(f"mmesh_index_{of}_failures_total", labels) or 0.0


def all_failures(error):
    return failures(error) + failures(error, "collection") + task_failures(error)


class FaultyLog:
    """A real log whose calls are counted, and fail as long as `faults` says so."""

    def __init__(self, log):
        self._log = log
        self.faults = {}
        """Errors, by the name of the call and the collection, or by the name of the call."""
        self.calls = Counter()

    def __getattr__(self, name):
        def call(*arguments, **options):
            of = (name, arguments[0]) if arguments else name
            self.calls[of] += 1
            if (error := self.faults.get(of)) is not None:
                raise error
            return getattr(self._log, name)(*arguments, **options)

        return call


class HeldSource(LogAlone):
    """A source that keeps some collections waiting, and notes which views it got back."""

    def __init__(self):
        self.held = {}
        self.discarded = []

    def hold(self, name):
        self.held[name] = asyncio.Event()
        return self.held[name]

    async def restore(self, row):
        if row.name in self.held:
            await self.held[row.name].wait()

    def discard(self, view):
        self.discarded.append(view.name)


@pytest.fixture
def writer(sqlite_writer):
    return sqlite_writer


@pytest.fixture
def log(writer):
    return FaultyLog(writer.log)


@pytest.fixture
def source():
    return HeldSource()


@pytest.fixture
def follow(follow, log, source):
    return partial(follow, log, source=source)


async def caught_up(follower, writer, name="c", wait_s=10):
    """Wait until the follower has applied what the collection's log has now."""
    row = writer.log.collection(name)
    return await follower.wait_for(row, row.seq, Deadline.after(wait_s))


# -- following


async def test_what_was_written_before_and_after_the_start_is_in_the_view(follow, writer):
    writer.put("a", "b")
    async with follow() as follower:
        await follower.loaded()
        assert follower.views["c"].counts()[Modality.TEXT] == 2
        writer.put("b", "c")
        writer.delete("a")
        view = await caught_up(follower, writer)
        assert view.counts()[Modality.TEXT] == 2
        assert follower.lags()["c"].writes == 0
        assert follower.lags()["c"].seconds < 5


async def test_a_write_is_applied_at_once_when_the_collection_is_named(follow, writer, until):
    async with follow(poll_s=60) as follower:
        await follower.loaded()
        writer.put("a")
        follower.look("c")
        await until(lambda: follower.views["c"].applied == 1)


async def test_a_write_to_one_collection_reads_no_other(follow, writer, log, until):
    for number in range(5):
        writer.create(f"other-{number}")
    async with follow(poll_s=60) as follower:
        await follower.loaded()
        log.calls.clear()
        for number in range(10):
            writer.put(str(number))
            follower.look("c")
            await until(lambda number=number: follower.views["c"].applied == number + 1)
        assert log.calls["collections"] == 0
        assert {of for of in log.calls if of[0] == "collection"} == {("collection", "c")}


async def test_when_many_collections_changed_all_are_looked_at_together(follow, writer, log, until):
    names = [f"other-{number}" for number in range(module.FEW + 1)]
    for name in names:
        writer.create(name)
    async with follow(poll_s=60) as follower:
        await follower.loaded()
        log.calls.clear()
        for name in names:
            writer.put("a", collection=name)
            follower.look(name)
        await until(lambda: all(follower.views[name].applied for name in names))
        assert log.calls["collections"] == 1
        assert not any(of[0] == "collection" for of in log.calls)


async def test_collections_and_aliases_come_and_go(follow, writer, source, until):
    async with follow() as follower:
        await follower.loaded()
        writer.create("new")
        writer.log.set_alias("alias", "new")
        await until(lambda: follower.row("alias") is not None)
        view = await caught_up(follower, writer, "new")
        assert follower.row("alias").name == "new"
        assert follower.has(view)
        writer.log.delete_collection("new")
        await until(lambda: "new" not in follower.views)
        assert follower.row("new") is follower.row("alias") is None
        assert not follower.has(view)
        assert source.discarded == ["new"]


async def test_a_collection_of_the_same_name_is_another_one(follow, writer, source):
    writer.put("a", "b")
    async with follow() as follower:
        await follower.loaded()
        old = follower.views["c"]
        writer.log.delete_collection("c")
        writer.create()
        writer.put("z")
        view = await caught_up(follower, writer)
        assert view is not old
        assert view.counts()[Modality.TEXT] == 1
        assert source.discarded == ["c"]


async def test_a_view_that_lacks_purged_deletions_begins_anew(follow, writer, log, until):
    writer.put("a", "b")
    async with follow() as follower:
        await follower.loaded()
        old = follower.views["c"]
        log.faults = {"collections": LogUnavailable("away")}
        follower.look()
        await asyncio.sleep(0.02)
        writer.delete("a")
        writer.log.purge(-1)
        log.faults = {}
        await until(lambda: follower.views.get("c") not in (None, old))
        assert (await caught_up(follower, writer)).counts()[Modality.TEXT] == 1


async def test_subscribers_hear_of_views_that_changed(follow, writer, until):
    changed = []
    async with follow() as follower:
        await follower.loaded()
        follower.subscribe(lambda view: changed.append((view.name, view.applied)))
        writer.put("a", "b")
        await until(lambda: changed)
        assert changed == [("c", 2)]


# -- waiting


async def test_who_waits_for_a_write_that_does_not_come_is_told(follow, writer):
    async with follow() as follower:
        await follower.loaded()
        with pytest.raises(StaleReplica):
            await follower.wait_for(writer.log.collection("c"), 99, Deadline.after(0.02))
        assert not follower._waiters._waiting


async def test_who_waits_goes_on_as_soon_as_its_own_collection_is_there(follow, writer, source):
    writer.create("slow")
    held = source.hold("slow")
    async with follow() as follower:
        slow = asyncio.create_task(caught_up(follower, writer, "slow"))
        assert (await caught_up(follower, writer, "c")).name == "c"
        assert not slow.done()
        held.set()
        assert (await slow).name == "slow"


async def test_who_waits_for_a_collection_that_is_deleted_is_told_at_once(follow, writer):
    async with follow() as follower:
        await follower.loaded()
        row = writer.log.collection("c")
        waiting = asyncio.create_task(follower.wait_for(row, 99, Deadline.after(60)))
        await asyncio.sleep(0)
        writer.log.delete_collection("c")
        with pytest.raises(CollectionNotFound):
            await waiting


async def test_who_gives_up_waiting_leaves_the_others(follow, writer):
    async with follow() as follower:
        await follower.loaded()
        row = writer.log.collection("c")
        first, second = (
            asyncio.create_task(follower.wait_for(row, 1, Deadline.after(10))) for _ in range(2)
        )
        await asyncio.sleep(0.01)
        first.cancel()
        writer.put("a")
        assert (await second).applied == 1


# -- slow and failing collections


async def test_a_collection_that_takes_long_to_restore_keeps_no_other_from_fresh_data(
    follow, writer, source, until
):
    async with follow() as follower:
        await follower.loaded()
        writer.create("slow")
        held = source.hold("slow")
        follower.look()
        await until(lambda: "slow" in follower.collections)
        for number in range(20):
            writer.put(str(number))
            await caught_up(follower, writer)
        assert "slow" not in follower.views
        held.set()
        await caught_up(follower, writer, "slow")


async def test_a_collection_that_is_deleted_while_it_is_restored_leaves_nothing(
    follow, writer, source, until
):
    writer.create("slow")
    held = source.hold("slow")
    async with follow() as follower:
        await until(lambda: "slow" in follower.collections)
        writer.log.delete_collection("slow")
        await until(lambda: "slow" not in follower.collections)
        held.set()
        await until(lambda: source.discarded == ["slow"])
        assert follower.views.keys() == {"c"}


async def test_more_than_a_batch_is_loaded_before_searches_see_the_view(
    follow, writer, row, upsert
):
    rows = [row(f"id{number}") for number in range(TAIL_ROWS + 10)]
    writer.write(upsert(rows))
    seen = []
    async with follow(delta_rows=4096) as follower:
        follower.subscribe(lambda view: seen.append((view.applied, "c" in follower.views)))
        await follower.loaded()
        assert follower.views["c"].counts()[Modality.TEXT] == len(rows)
    assert seen == [(TAIL_ROWS, False), (len(rows), False)]


@pytest.fixture
def small_pages(monkeypatch):
    """The log is read five rows at a time."""
    for one in (module, loader):
        monkeypatch.setattr(one, "TAIL_ROWS", 5)


async def test_a_write_that_was_written_again_is_seen_by_who_waits_for_it(
    follow, writer, small_pages
):
    others = [f"other-{number}" for number in range(7)]
    async with follow(poll_s=60) as follower:
        await follower.loaded()
        seq = Token.parse(writer.put("new").token).seq
        writer.put(*others)
        writer.put("new")
        row = writer.log.collection("c")
        view = await follower.wait_for(row, seq, Deadline.after(10))
        assert view.counts()[Modality.TEXT] == 8


async def test_a_view_that_is_loaded_beside_writes_lacks_nothing(follow, writer, small_pages):
    first = [f"first-{number}" for number in range(8)]
    writer.put(*first)
    pages = []

    def write_beside_the_first_page(view):
        if not pages:
            writer.put(*(f"beside-{number}" for number in range(7)))
            writer.put(first[6])
        pages.append(view.applied)

    async with follow(poll_s=60) as follower:
        follower.subscribe(write_beside_the_first_page)
        await follower.loaded()
        assert follower.views["c"].counts()[Modality.TEXT] == 15
    assert pages == [5, 11, 16]


async def test_a_purge_does_not_send_a_view_that_is_loaded_back_to_its_beginning(
    follow, writer, small_pages
):
    writer.put(*(f"id-{number}" for number in range(12)))
    writer.delete("id-11")
    pages = []

    def purge_beside_the_first_page(view):
        if not pages:
            writer.log.purge(-1)
        pages.append(view.applied)

    async with follow() as follower:
        follower.subscribe(purge_beside_the_first_page)
        await follower.loaded()
        assert follower.views["c"].counts()[Modality.TEXT] == 11
    assert pages[:2] == [5, 10]
    assert pages == sorted(pages)


@pytest.mark.parametrize("call", ["read_after", "collections"])
async def test_whatever_the_log_raises_it_is_counted_and_following_goes_on(
    follow, writer, log, call, error, until
):
    async with follow() as follower:
        follower._task._backoff = AT_ONCE  # that of a task is long
        await follower.loaded()
        before = all_failures(error)
        log.faults = {call: error, (call, "c"): error}
        writer.put("a")
        await until(lambda: all_failures(error) >= before + 3)
        log.faults = {}
        await until(lambda: follower.views["c"].applied == 1)
        await until(lambda: follower._task.is_well and not follower.refused)


def task_failures(error):
    labels = {"task": "index-follower", "error": name_of(error)}
    return REGISTRY.get_sample_value("mmesh_task_failures_total", labels) or 0.0


async def test_a_collection_that_cannot_be_followed_fails_alone(follow, writer, log, error, until):
    writer.create("bad")
    log.faults = {("read_after", "bad"): error}
    writer.put("a", collection="bad")
    before = all_failures(error)
    async with follow() as follower:
        await until(lambda: all_failures(error) > before)
        for number in range(10):
            writer.put(str(number))
            await caught_up(follower, writer)
        assert follower._task.is_well
        log.faults = {}
        await until(lambda: not follower.lags()["bad"].writes and not follower.refused)


async def test_searches_of_a_collection_that_cannot_be_followed_hear_why_at_once(
    follow, writer, log
):
    log.faults = {("read_after", "c"): RuntimeError("secret details")}
    writer.put("a")
    async with follow() as follower:
        waiting = asyncio.create_task(caught_up(follower, writer))
        await follower.loaded()
        for call in (waiting, caught_up(follower, writer)):
            with pytest.raises(InternalError, match="'c' cannot be followed") as refusal:
                await call
            assert "secret" not in refusal.value.message


async def test_a_collection_that_does_not_fit_into_memory_is_refused_alone(follow, writer, until):
    writer.put("a")
    async with follow(limit=1) as follower:
        await follower.loaded()
        assert isinstance(follower.refused["c"], MemoryFull)
        with pytest.raises(MemoryFull):
            await caught_up(follower, writer)
        follower._loader._budget = MemoryBudget(1 << 40)
        await until(lambda: not follower.lags()["c"].writes)


async def test_a_collection_that_does_not_fit_is_no_look_at_the_log_that_failed(
    follow, writer, until
):
    writer.put("a")
    looks, tries = failures(MemoryFull("")), failures(MemoryFull(""), "collection")
    async with follow(limit=1):
        await until(lambda: failures(MemoryFull(""), "collection") >= tries + 2)
    assert failures(MemoryFull("")) == looks


async def test_a_refusal_is_logged_once_for_each_kind(follow, writer, log, until, caplog):
    writer.put("a")
    async with follow() as follower:
        for error in (MemoryFull("full"), DataLoss("damaged"), RuntimeError("a defect")):
            before = failures(error, "collection")
            log.faults = {("read_after", "c"): error}
            await until(lambda e=error, n=before: failures(e, "collection") >= n + 3)
        assert follower.refused["c"].reason == "INTERNAL"
    told = [one.why for one in caplog.records if one.getMessage() == "collection refused"]
    assert told == ["full", "damaged", "a defect"]


async def test_a_log_that_is_away_is_no_collection_that_failed(follow, writer, log, until):
    error = LogUnavailable("away")
    looks, tries = failures(error), failures(error, "collection")
    async with follow() as follower:
        await follower.loaded()
        log.faults = {("read_after", "c"): error}
        writer.put("a")
        await until(lambda: failures(error) >= looks + 2)
        log.faults = {}
        await caught_up(follower, writer)
    assert failures(error, "collection") == tries


async def test_a_refusal_does_not_grow_by_being_told(follow, writer):
    writer.put("a")
    async with follow(limit=1, pauses=Pauses(60, 60)) as follower:
        await follower.loaded()
        for _ in range(50):
            with pytest.raises(MemoryFull):
                await caught_up(follower, writer)
        trace, depth = follower.refused["c"].__traceback__, 0
        while trace is not None:
            trace, depth = trace.tb_next, depth + 1
        assert depth < 10


async def test_rows_that_were_applied_in_part_are_not_there_twice(follow, writer, until):
    async with follow() as follower:
        await follower.loaded()
        old = follower.views["c"]
        apply = old.apply

        def fail_afterwards(rows, through):
            apply(rows, through - 1)
            raise MemoryError

        old.apply = fail_afterwards
        writer.put("a", "b", "c")
        await until(lambda: follower.views.get("c", old) is not old)
        view = await caught_up(follower, writer)
        assert view.counts()[Modality.TEXT] == 3
        found = view.search(np.array([[0, 1]], np.float32), [Modality.TEXT], 10, None)
        assert sorted(found[0][0].ids) == ["a", "b", "c"]


async def test_while_the_log_is_away_searches_go_on_and_the_view_grows_stale(follow, writer, log):
    writer.put("a")
    async with follow() as follower:
        await follower.loaded()
        log.faults = {"collections": LogUnavailable("away")}
        follower.look()
        await asyncio.sleep(0.05)
        row = follower.row("c")
        assert (await follower.wait_for(row, 1, Deadline.after(1))).applied == 1
        assert follower.lags()["c"].seconds > 0.03
        assert follower._task.is_well


async def test_a_named_collection_that_is_gone_leads_to_a_look_at_all(follow, writer, log, until):
    async with follow(poll_s=60) as follower:
        await follower.loaded()
        writer.log.delete_collection("c")
        follower.look("c")
        await until(lambda: not follower.views)
        with pytest.raises(CollectionNotFound):
            writer.log.collection("c")


async def test_leaving_ends_all_threads_while_a_view_is_being_restored(
    follow, writer, source, until
):
    source.hold("c")
    async with follow() as follower:
        await until(lambda: "c" in follower.collections)
        pools = [follower._loader._readers, follower._loader._applier]
    assert all(isinstance(pool, ThreadPoolExecutor) and pool._shutdown for pool in pools)


async def test_settings_that_changed_are_seen(follow, writer, until):
    async with follow() as follower:
        await follower.loaded()
        writer.log.update_collection("c", {"recall_target": 0.5})
        await until(lambda: follower.row("c").settings.recall_target == 0.5)
