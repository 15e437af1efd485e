"""Compaction: every partition has its turn, and what fails waits alone and leaves nothing."""

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from mmesh.errors import StorageFull
from mmesh.serving.backoff import Pauses
from mmesh.serving.deadline import Deadline
from services.index.build import worker
from services.index.config import IndexSettings
from services.index.segments.segment import Segment
from services.index.upkeep.builds import Builds
from services.index.upkeep.gauges import Gauges
from services.index.upkeep.restorer import Restorer
from services.index.upkeep.scratch import Scratch

AT_ONCE = Pauses(first_s=0.001, longest_s=0.001)
ROWS = 8
"""Rows of a delta."""


def failures(error):
    labels = {"error": type(error).__name__}
    return REGISTRY.get_sample_value("mmesh_index_build_failures_total", labels) or 0.0


class LocalBuilder:
    """Builds in this process; some orders fail, by what comes first of their inputs' rows."""

    def __init__(self):
        self.faults = {}
        """Errors by the first candidate's id without its number."""
        self.built, self.go = [], asyncio.Event()
        self.go.set()

    async def build(self, order):
        await self.go.wait()
        kind = Segment.open(order.inputs[0].folder).ids(np.array([0]))[0].partition("-")[0]
        self.built.append(kind)
        if (error := self.faults.get(kind)) is not None:
            raise error
        kept = [order.output.with_name(f"kept-{n}") for n in range(len(order.inputs))]
        for path, given in zip(kept, order.inputs, strict=True):
            path.write_bytes(given.kept)
        inputs = [
            {"folder": str(given.folder), "kept": str(path)}
            for path, given in zip(kept, order.inputs, strict=True)
        ]
        worker.build({"inputs": inputs, "output": str(order.output)})
        for path in kept:
            path.unlink()
        return order.output


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
async def builder():
    return LocalBuilder()


@pytest.fixture
def upkeep(follow, scratch, builder):
    """Open a follower with its builds, which begin when `start` is called."""

    @asynccontextmanager
    async def upkeep(pauses=AT_ONCE, look_s=0.002):
        settings = IndexSettings(quiet_s=1e9)
        source = Restorer(None, scratch, range(256), delta_rows=ROWS, device="cpu")
        source.restore = no_snapshot
        async with follow(delta_rows=ROWS, source=source) as follower:
            options = {"pauses": pauses, "look_s": look_s}
            async with Builds(settings, follower, scratch, builder, **options) as builds:
                yield follower, builds

    return upkeep


async def test_a_compaction_that_is_cancelled_as_it_ends_leaves_a_segment_that_is_whole(
    upkeep, sqlite_writer, folders, monkeypatch, until
):
    async with upkeep() as (follower, builds):
        view = await filled(sqlite_writer, follower, deltas=0)  # too little for a merge by itself
        partition = view.partitions[Modality.TEXT]
        began, go, replace_ = threading.Event(), threading.Event(), partition.replace

        def slowly(*arguments):
            began.set()
            assert go.wait(10)
            replace_(*arguments)

        monkeypatch.setattr(partition, "replace", slowly)
        row = sqlite_writer.log.collection("c")
        compacting = asyncio.create_task(builds.compact(view, row))
        await asyncio.to_thread(began.wait)
        compacting.cancel()
        await asyncio.sleep(0.01)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await compacting
        (segment,) = partition.segments
        assert segment.folder.is_dir()
        await until(lambda: folders() == ["segment"])


async def no_snapshot(_row):
    return None


async def filled(writer, follower, name="c", deltas=1, first=0):
    """Write so many full deltas, and one row more, and return the view that has them."""
    writer.put(*(f"{name}-{first + n}" for n in range(deltas * ROWS + 1)), collection=name)
    row = writer.log.collection(name)
    return await follower.wait_for(row, row.seq, Deadline.after(10))


def texts(view):
    return view.partitions[Modality.TEXT]


async def test_full_deltas_become_segments(upkeep, sqlite_writer, until, folders):
    async with upkeep() as (follower, _):
        view = await filled(sqlite_writer, follower, deltas=3)
        await until(lambda: texts(view).segments and not texts(view).full_deltas)
        assert view.counts()[Modality.TEXT] == 3 * ROWS + 1
        await until(lambda: folders() == ["segment"] * len(texts(view).segments))


async def test_a_change_wakes_the_builds(upkeep, sqlite_writer, until):
    async with upkeep(look_s=60) as (follower, _):
        for number in range(3):
            view = await filled(sqlite_writer, follower, first=100 * number)
            await until(lambda view=view: not texts(view).full_deltas)


async def test_whatever_a_build_raises_is_counted_and_the_partition_is_tried_again(
    upkeep, sqlite_writer, builder, until, folders, error
):
    before = failures(error)
    builder.faults = {"c": error}
    async with upkeep() as (follower, builds):
        view = await filled(sqlite_writer, follower)
        await until(lambda: failures(error) >= before + 3)
        assert builds._task.is_well
        builder.faults = {}
        await until(lambda: texts(view).segments)
        await until(lambda: folders() == ["segment"])


async def test_where_no_segment_is_left_there_is_no_recall_of_segments(
    upkeep, sqlite_writer, until
):
    def recall():
        labels = {"collection": "c", "modality": "text"}
        return REGISTRY.get_sample_value("mmesh_index_segment_recall", labels)

    async with upkeep() as (follower, builds):
        view, gauges = await filled(sqlite_writer, follower, deltas=3), Gauges(follower)
        await until(lambda: texts(view).segments and not texts(view).full_deltas)
        gauges.export()
        assert recall() == 1
        sqlite_writer.delete(*(f"c-{number}" for number in range(3 * ROWS + 1)))
        row = sqlite_writer.log.collection("c")
        await follower.wait_for(row, row.seq, Deadline.after(10))
        await builds.compact(view, row)
        assert not texts(view).segments
        gauges.export()
        assert recall() is None


async def test_a_poisoned_partition_holds_up_no_other(upkeep, sqlite_writer, builder, until):
    for name in ("poisoned", "healthy"):
        sqlite_writer.create(name)
    builder.faults = {"poisoned": RuntimeError("FAISS")}
    async with upkeep() as (follower, _):
        await filled(sqlite_writer, follower, "poisoned", deltas=10)
        for number in range(3):
            view = await filled(sqlite_writer, follower, "healthy", first=100 * number)
            await until(lambda view=view: not texts(view).full_deltas)
        assert builder.built.count("poisoned") >= 2


async def test_a_partition_that_failed_waits(upkeep, sqlite_writer, builder, until):
    builder.faults = {"c": RuntimeError("FAISS")}
    before = failures(builder.faults["c"])
    async with upkeep(pauses=Pauses(60, 60)) as (follower, _):
        await filled(sqlite_writer, follower)
        await until(lambda: failures(builder.faults["c"]) == before + 1)
        await filled(sqlite_writer, follower, first=100)
        await asyncio.sleep(0.05)
        assert builder.built == ["c"]


async def test_partitions_have_their_turns_however_many_rows_wait(
    upkeep, sqlite_writer, builder, until
):
    names = ["large", "small", "tiny"]
    for name in names:
        sqlite_writer.create(name)
    builder.go.clear()
    builder.faults = dict.fromkeys(names, OSError(28, "disk full"))
    async with upkeep(pauses=Pauses(0, 0)) as (follower, _):
        for name, deltas in zip(names, (10, 3, 1), strict=True):
            await filled(sqlite_writer, follower, name, deltas)
        builder.go.set()
        await until(lambda: len(builder.built) >= 18)
    later = builder.built[3:18]
    assert all(set(later[start : start + 3]) == set(names) for start in range(0, 15, 3))


async def test_failed_builds_leave_no_folder_behind(upkeep, sqlite_writer, builder, until, folders):
    builder.faults = {"c": StorageFull("full")}
    async with upkeep() as (follower, _):
        await filled(sqlite_writer, follower, deltas=3)
        await until(lambda: len(builder.built) > 20)
        builder.go.clear()
        await until(lambda: folders() in ([], ["stage"]))


async def test_a_segment_that_cannot_be_opened_is_removed(
    upkeep, sqlite_writer, builder, until, folders
):
    build = builder.build

    async def damaged(order):
        folder = await build(order)
        (folder / "index.faiss").write_bytes(b"garbage")
        return folder

    builder.build = damaged
    async with upkeep() as (follower, _):
        view = await filled(sqlite_writer, follower)
        await until(lambda: len(builder.built) >= 3)
        builder.go.clear()
        await until(lambda: folders() in ([], ["stage"]))
        builder.build = build
        builder.go.set()
        await until(lambda: texts(view).segments)


async def test_a_collection_deleted_while_it_is_built_is_no_failure_and_leaves_nothing(
    upkeep, sqlite_writer, builder, until, folders
):
    sqlite_writer.create("gone")
    builder.faults = {"gone": RuntimeError("its inputs are gone")}
    before = failures(builder.faults["gone"])
    builder.go.clear()
    async with upkeep() as (follower, builds):
        await filled(sqlite_writer, follower, "gone")
        await until(lambda: folders() == ["stage"])
        sqlite_writer.log.delete_collection("gone")
        await until(lambda: "gone" not in follower.views)
        builder.go.set()
        await until(lambda: builder.built == ["gone"] and folders() == [])
        assert failures(builder.faults["gone"]) == before
        await until(lambda: not builds._turns)


async def test_the_segment_of_a_collection_deleted_while_it_was_built_is_removed(
    upkeep, sqlite_writer, builder, until, folders
):
    sqlite_writer.create("gone")
    builder.go.clear()
    async with upkeep() as (follower, _):
        await filled(sqlite_writer, follower, "gone")
        await until(lambda: folders() == ["stage"])
        sqlite_writer.log.delete_collection("gone")
        await until(lambda: "gone" not in follower.views)
        builder.go.set()
        await until(lambda: builder.built == ["gone"] and folders() == [])


async def test_rows_that_died_while_a_segment_was_built_are_dead_in_it(
    upkeep, sqlite_writer, builder, until
):
    builder.go.clear()
    async with upkeep() as (follower, _):
        view = await filled(sqlite_writer, follower)
        await until(lambda: texts(view).full_deltas)
        sqlite_writer.delete("c-0", "c-1")
        row = sqlite_writer.log.collection("c")
        await follower.wait_for(row, row.seq, Deadline.after(10))
        builder.go.set()
        await until(lambda: texts(view).segments)
        [segment] = texts(view).segments
        assert segment.dead == 2
        assert view.counts()[Modality.TEXT] == ROWS - 1


async def test_a_partition_of_dead_rows_alone_becomes_nothing(
    upkeep, sqlite_writer, builder, until, folders
):
    builder.faults = {"c": OSError(28, "disk full")}
    async with upkeep(pauses=Pauses(0.2, 0.2)) as (follower, _):
        view = await filled(sqlite_writer, follower)
        await until(lambda: builder.built)
        sqlite_writer.delete(*(f"c-{n}" for n in range(ROWS)))
        await until(lambda: not texts(view).full_deltas)
        assert not texts(view).segments
        assert builder.built == ["c"]
        await until(lambda: folders() == [])


async def test_compaction_merges_all_into_one_segment_of_the_kind_that_is_wanted(
    upkeep, sqlite_writer, folders, until
):
    async with upkeep() as (follower, builds):
        view = await filled(sqlite_writer, follower, deltas=2)
        await until(lambda: texts(view).segments)
        row = replace(follower.row("c"), settings=CollectionSettings(recall_target=0.9))
        await builds.compact(view, row)
        [segment] = texts(view).segments
        assert len(segment) == 2 * ROWS + 1
        assert not texts(view).full_deltas
        await until(lambda: folders() == ["segment"])


async def test_what_compaction_meets_is_told_to_its_caller(upkeep, sqlite_writer, builder):
    builder.faults = {"c": StorageFull("full")}
    async with upkeep(pauses=Pauses(60, 60)) as (follower, builds):
        view = await filled(sqlite_writer, follower)
        with pytest.raises(StorageFull):
            await builds.compact(view, follower.row("c"))


async def test_the_loop_comes_back_from_a_defect_of_its_own(upkeep, sqlite_writer, until, error):
    labels = {"task": "index-builds", "error": type(error).__name__}

    def count():
        return REGISTRY.get_sample_value("mmesh_task_failures_total", labels) or 0.0

    before = count()
    async with upkeep() as (follower, builds):
        builds._task._backoff = AT_ONCE  # that of a task is long
        look, broken = builds._next, [error, error]

        def broken_look():
            if broken:
                raise broken.pop()
            return look()

        builds._next = broken_look
        view = await filled(sqlite_writer, follower)
        await until(lambda: texts(view).segments)
        assert count() == before + 2
        assert builds._task.is_well
