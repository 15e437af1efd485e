"""Periodic snapshots: each collection for itself, whatever the store says and whoever deletes."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from mmesh.errors import CollectionNotFound, FailedPrecondition
from mmesh.serving.backoff import Pauses
from mmesh.serving.deadline import Deadline
from services.index.slots import SLOTS
from services.index.store.objects import open_objects
from services.index.store.snapshot import Snapshots
from services.index.upkeep.restorer import Restorer
from services.index.upkeep.scratch import Scratch
from services.index.upkeep.snapshots import Snapshotter

AT_ONCE = Pauses(first_s=0.001, longest_s=0.001)
OFTEN_S = 0.002


def failures(reason="not_stored"):
    labels = {"reason": reason}
    return REGISTRY.get_sample_value("mmesh_index_snapshot_failures_total", labels) or 0.0


class FaultySnapshots(Snapshots):
    """Real snapshots whose calls may be held up, and fail for some collections."""

    def __init__(self, objects):
        super().__init__(objects, keep=3)
        self.faults, self.tried, self.go = {}, [], threading.Event()
        self.go.set()

    def save(self, content):
        self.tried.append(content.collection)
        assert self.go.wait(10)
        if (error := self.faults.get(content.collection)) is not None:
            raise error
        return super().save(content)

    def stored(self, epoch=""):
        return [(info.number, info.manifest.seq) for info in self.list(epoch)]


@pytest.fixture
def snapshots(tmp_path):
    snapshots = FaultySnapshots(open_objects(tmp_path / "store"))
    yield snapshots
    snapshots.go.set()


@pytest.fixture
def scratch(tmp_path):
    scratch = Scratch(tmp_path / "scratch")
    yield scratch
    scratch.close()


@pytest.fixture
def folders(scratch):
    """Return the names of the folders that are in use, without their numbers."""

    def names():
        found = scratch.folder.iterdir()
        return sorted(path.name.partition("-")[0] for path in found if path.is_dir())

    return names


@pytest.fixture
def upkeep(follow, scratch, snapshots):
    """Open a follower that begins from snapshots, and with it what stores them."""

    @asynccontextmanager
    async def upkeep(interval_s=OFTEN_S, pauses=AT_ONCE):
        source = Restorer(snapshots, scratch, range(SLOTS), delta_rows=64, device="cpu")
        async with follow(source=source) as follower:
            await follower.loaded()
            async with Snapshotter(
                follower, snapshots, scratch, interval_s, pauses=pauses
            ) as snapshotter:
                yield follower, snapshotter

    return upkeep


async def applied(writer, follower, name="c"):
    row = writer.log.collection(name)
    return await follower.wait_for(row, row.seq, Deadline.after(10))


async def test_what_changed_is_stored_and_what_did_not_is_not(
    upkeep, sqlite_writer, snapshots, until
):
    async with upkeep() as (_, snapshotter):
        sqlite_writer.put("a", "b")
        await until(lambda: (1, 2) in snapshots.stored())
        await asyncio.sleep(0.05)
        assert len(snapshots.stored()) == 1
        sqlite_writer.put("c")
        await until(lambda: (2, 3) in snapshots.stored())
        assert snapshotter._task.is_well


async def test_a_view_that_begins_from_a_snapshot_is_not_stored_again(
    upkeep, sqlite_writer, snapshots, until
):
    async with upkeep():
        sqlite_writer.put("a", "b")
        await until(lambda: (1, 2) in snapshots.stored())
    snapshots.tried.clear()
    async with upkeep() as (follower, _):
        view = follower.views["c"]
        assert (view.applied, view.stored) == (2, 2)
        await asyncio.sleep(0.05)
        assert not snapshots.tried


async def test_the_age_of_a_snapshot_grows_only_while_there_is_something_to_store(
    upkeep, sqlite_writer, snapshots, until
):
    snapshots.faults = {"c": OSError("full")}
    async with upkeep() as (follower, snapshotter):

        def age():
            return snapshotter.age_of(follower.views["c"])

        assert age() == 0
        sqlite_writer.put("a")
        await until(lambda: age() > 0)
        young = age()
        await until(lambda: age() > young)
        snapshots.faults = {}
        await until(lambda: age() == 0)


async def test_without_an_interval_snapshots_are_made_when_asked_for_alone(
    upkeep, sqlite_writer, snapshots, folders, until
):
    async with upkeep(interval_s=0) as (follower, snapshotter):
        sqlite_writer.put("a")
        view = await applied(sqlite_writer, follower)
        assert await snapshotter.snapshot(view) == (1, view.token)
        assert snapshots.tried == ["c"]
        await until(lambda: not folders())


async def test_whatever_a_store_raises_is_counted_and_the_collection_is_tried_again(
    upkeep, sqlite_writer, snapshots, until, folders, error
):
    before = failures()
    snapshots.faults = {"c": error}
    async with upkeep() as (_, snapshotter):
        sqlite_writer.put("a")
        await until(lambda: failures() >= before + 3)
        assert snapshotter._task.is_well
        snapshots.faults = {}
        await until(lambda: snapshots.stored() == [(1, 1)])
        await until(lambda: not folders())


async def test_a_collection_that_cannot_be_stored_holds_up_no_other(
    upkeep, sqlite_writer, snapshots, until
):
    sqlite_writer.create("healthy")
    snapshots.faults = {"c": RuntimeError("FAISS")}
    async with upkeep(pauses=Pauses(60, 60)) as (follower, _):
        sqlite_writer.put("a")
        for number in range(3):
            sqlite_writer.put(str(number), collection="healthy")
            view = await applied(sqlite_writer, follower, "healthy")
            await until(lambda view=view: view.stored == view.applied)
        await until(lambda: "c" in snapshots.tried)
        assert snapshots.tried.count("c") == 1


@pytest.mark.parametrize("fault", [None, OSError(2, "its files are gone"), RuntimeError("FAISS")])
async def test_a_collection_deleted_in_the_middle_of_its_snapshot_ends_it_quietly(
    upkeep, sqlite_writer, snapshots, until, folders, fault
):
    sqlite_writer.create("gone")
    snapshots.faults = {"gone": fault}
    before = failures()
    async with upkeep() as (follower, snapshotter):
        snapshots.go.clear()
        sqlite_writer.put("a", collection="gone")
        await until(lambda: snapshots.tried == ["gone"])
        epoch = follower.views["gone"].epoch
        sqlite_writer.log.delete_collection("gone")
        await until(lambda: "gone" not in follower.collections)
        snapshots.go.set()
        sqlite_writer.put("b")
        await until(lambda: follower.views["c"].stored == 1)
        assert failures() == before
        assert snapshotter._task.failures == 0
        assert snapshots.stored(epoch) == []
        await until(lambda: not folders())


async def test_a_collection_that_was_deleted_has_no_snapshot(upkeep, sqlite_writer, snapshots):
    async with upkeep(interval_s=0) as (follower, snapshotter):
        sqlite_writer.put("a")
        view = await applied(sqlite_writer, follower)
        sqlite_writer.log.delete_collection("c")
        follower.look()
        async with asyncio.timeout(10):
            while follower.views:  # noqa: ASYNC110  # nothing tells but looking
                await asyncio.sleep(0.001)
        with pytest.raises(CollectionNotFound):
            await snapshotter.snapshot(view)
        assert not snapshots.stored()


async def test_a_replica_that_was_overtaken_says_so_and_counts_no_failure(
    upkeep, sqlite_writer, snapshots, until
):
    before = failures()
    snapshots.save = lambda content: snapshots.tried.append(content.collection)
    async with upkeep(interval_s=0.05) as (follower, snapshotter):
        sqlite_writer.put("a")
        view = await applied(sqlite_writer, follower)
        with pytest.raises(FailedPrecondition, match="another replica"):
            await snapshotter.snapshot(view)
        sqlite_writer.put("b")
        await until(lambda: len(snapshots.tried) == 2)
        assert failures() == before


async def test_the_loop_comes_back_from_a_defect_of_its_own(
    upkeep, sqlite_writer, snapshots, until, error
):
    labels = {"task": "index-snapshots", "error": type(error).__name__}

    def count():
        return REGISTRY.get_sample_value("mmesh_task_failures_total", labels) or 0.0

    before = count()
    async with upkeep() as (_, snapshotter):
        snapshotter._task._backoff = AT_ONCE  # that of a task is long
        look, broken = snapshotter._due, [error, error]

        def broken_look():
            if broken:
                raise broken.pop()
            return look()

        snapshotter._due = broken_look
        sqlite_writer.put("a")
        await until(lambda: snapshots.stored() == [(1, 1)])
        assert count() == before + 2


async def test_snapshots_that_cannot_be_removed_fail_no_deletion(upkeep, snapshots, error):
    def fail(_epoch):
        raise error

    snapshots.drop = fail
    before = failures("not_removed")
    async with upkeep(interval_s=0) as (_, snapshotter):
        await snapshotter.drop("epoch")
    assert failures("not_removed") == before + 1


# -- restoring


async def test_whatever_is_wrong_with_a_snapshot_the_log_has_it_all(
    upkeep, sqlite_writer, snapshots, until, folders, error
):
    def fail(*_, **__):
        raise error

    before = failures("not_restored")
    snapshots.load_newest = fail
    sqlite_writer.put("a", "b")
    async with upkeep(interval_s=0) as (follower, _):
        assert follower.views["c"].applied == 2
        assert failures("not_restored") == before + 1
        await until(lambda: not folders())


async def test_what_was_restored_leaves_the_disk_with_its_collection(
    upkeep, sqlite_writer, until, folders
):
    sqlite_writer.put("a", "b")
    async with upkeep(interval_s=0) as (follower, snapshotter):
        await snapshotter.snapshot(follower.views["c"])
    async with upkeep(interval_s=0) as (follower, _):
        assert follower.views["c"].stored == 2
        await until(lambda: folders() == ["snapshot"])
        sqlite_writer.log.delete_collection("c")
        await until(lambda: not folders())
