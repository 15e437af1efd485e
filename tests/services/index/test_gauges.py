"""Gauges say what the shard holds now, whether anybody asks it or not."""

import pytest
from prometheus_client import REGISTRY

from mmesh.errors import DataLoss, InternalError
from mmesh.serving.deadline import Deadline
from services.index import metrics
from services.index.config import IndexSettings
from services.index.upkeep.collection_gauges import OTHERS
from services.index.upkeep.gauges import Gauges


def gauge(name, **labels):
    return REGISTRY.get_sample_value(f"mmesh_index_{name}", labels)


@pytest.fixture
def writer(sqlite_writer):
    sqlite_writer.create("gauged")
    return sqlite_writer


async def applied(writer, follower):
    row = writer.log.collection("gauged")
    await follower.wait_for(row, row.seq, Deadline.after(10))


async def test_they_follow_the_shard_without_being_asked(follow, writer, until):
    def candidates():
        return gauge("candidates", collection="gauged", modality="text")

    async with follow() as follower:
        await follower.loaded()
        async with Gauges(follower) as gauges:
            await until(lambda: candidates() == 0)
            writer.put("a", "b", collection="gauged")
            await applied(writer, follower)
            gauges.export()
            assert candidates() == 2
            assert gauge("memory_bytes", part="process") > 0
            assert gauge("memory_bytes", part="limit") == follower.budget.limit
            assert gauge("lag_writes", collection="gauged") == 0
            assert 0 <= gauge("staleness_seconds", collection="gauged") < 5
            assert gauge("segments", collection="gauged") == 0
            assert gauge("refused_collections", reason="MEMORY_FULL") == 0
            assert gauge("refused_collections", reason="CORRUPT_DATA") == 0


async def test_disks_are_told_by_what_they_are_for_and_a_missing_one_is_none(
    follow, writer, until, tmp_path
):
    folders = {"a disk": tmp_path, "no disk": tmp_path / "nothing"}
    async with follow() as follower:
        await follower.loaded()
        async with Gauges(follower, folders=folders):
            await until(lambda: gauge("disk_free_bytes", folder="a disk"))
            size = gauge("disk_size_bytes", folder="a disk")
            assert 0 < gauge("disk_free_bytes", folder="a disk") <= size
            assert gauge("disk_free_bytes", folder="no disk") is None


async def test_a_folder_with_a_limit_is_full_when_it_holds_so_much(follow, writer, until, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(bytes(300_000))
    async with follow() as follower:
        await follower.loaded()
        limits = {"limited": 1_000_000, "full": 100_000}
        async with Gauges(follower, folders=dict.fromkeys(limits, tmp_path / "in"), limits=limits):
            await until(lambda: gauge("disk_size_bytes", folder="full"))
            assert gauge("disk_size_bytes", folder="limited") == 1_000_000
            assert gauge("disk_free_bytes", folder="limited") == pytest.approx(700_000, abs=20_000)
            assert gauge("disk_free_bytes", folder="full") == 0


def test_only_what_is_on_disks_of_this_machine_has_a_folder(tmp_path):
    settings = IndexSettings(data_dir=tmp_path, scratch_dir=tmp_path / "s")
    found = {"scratch": tmp_path / "s", "log": tmp_path, "store": tmp_path}
    assert settings.folders == found
    elsewhere = {"log_url": "postgresql+psycopg://u@h/d", "blobs_url": "s3://bucket"}
    settings = IndexSettings(data_dir=tmp_path, scratch_dir=tmp_path / "s", **elsewhere)
    assert settings.folders == {"scratch": tmp_path / "s"}


async def test_a_collection_that_is_gone_is_not_exported_any_more(follow, writer, until):
    async with follow() as follower:
        await follower.loaded()
        gauges = Gauges(follower)
        gauges.export()
        writer.log.delete_collection("gauged")
        await until(lambda: "gauged" not in follower.views)
        gauges.export()
        assert gauge("lag_writes", collection="gauged") is None
        assert gauge("candidates", collection="gauged", modality="text") is None
        assert gauge("lag_writes", collection="c") == 0


async def test_of_a_collection_without_a_view_no_candidates_are_told(follow, writer):
    writer.put("a", "b", collection="gauged")
    async with follow() as follower:
        await applied(writer, follower)
        gauges = Gauges(follower)
        gauges.export()
        assert gauge("candidates", collection="gauged", modality="text") == 2
        del follower.views["gauged"]  # as where it begins anew
        gauges.export()
        assert gauge("lag_writes", collection="gauged") == 0
        assert gauge("candidates", collection="gauged", modality="text") is None


async def test_without_collections_their_parts_of_memory_are_empty(follow, writer, until):
    writer.put("a", "b", collection="gauged")
    async with follow() as follower:
        await applied(writer, follower)
        gauges = Gauges(follower)
        gauges.export()
        assert gauge("memory_bytes", part="vectors") > 0
        for name in ("gauged", "c"):
            writer.log.delete_collection(name)
        await until(lambda: not follower.views)
        gauges.export()
        assert gauge("memory_bytes", part="vectors") == 0
        assert gauge("memory_bytes", part="process") > 0
        assert gauge("memory_bytes", part="limit") > 0


async def test_a_bounded_number_of_collections_has_names_and_the_others_are_measured_together(
    follow, sqlite_writer, until
):
    for name in ("m-1", "m-2", "m-3"):
        sqlite_writer.create(name)
        sqlite_writer.put(f"{name}-a", f"{name}-b", collection=name)
    async with follow() as follower:
        await follower.loaded()
        for name in ("m-1", "m-2", "m-3"):
            row = sqlite_writer.log.collection(name)
            await follower.wait_for(row, row.seq, Deadline.after(10))
        ages = {"m-2": 50.0, "m-3": 70.0}
        gauges = Gauges(follower, most_named=2, snapshot_age=lambda view: ages.get(view.name, 0.0))
        gauges.export()
        told = {
            labels["collection"]
            for labels in (one.labels for one in metrics.lag.collect()[0].samples)
        }
        assert told >= {"c", "m-1", OTHERS}
        assert not told & {"m-2", "m-3"}
        assert gauge("candidates", collection=OTHERS, modality="text") == 4
        assert gauge("candidates", collection="m-1", modality="text") == 2
        assert gauge("snapshot_age_seconds", collection=OTHERS) == 70
        sqlite_writer.log.delete_collection("m-1")
        sqlite_writer.log.delete_collection("m-3")
        await until(lambda: not follower.views.keys() & {"m-1", "m-3"})
        gauges.export()
        assert gauge("candidates", collection="m-2", modality="text") == 2
        assert gauge("candidates", collection=OTHERS, modality="text") is None


async def test_refused_collections_are_counted_by_reason(follow, writer):
    writer.put("a", collection="gauged")
    async with follow(limit=1) as follower:
        await follower.loaded()
        gauges = Gauges(follower)
        gauges.export()
        assert gauge("refused_collections", reason="MEMORY_FULL") == 2
        assert gauge("lag_writes", collection="gauged") == 1
        follower.refused["gauged"] = DataLoss("damaged")
        follower.refused["c"] = InternalError("a defect")
        gauges.export()
        assert gauge("refused_collections", reason="MEMORY_FULL") == 0
        assert gauge("refused_collections", reason="CORRUPT_DATA") == 1
        assert gauge("refused_collections", reason="INTERNAL") == 1
        follower.refused.clear()
        gauges.export()
        for reason in ("MEMORY_FULL", "CORRUPT_DATA", "INTERNAL"):
            assert gauge("refused_collections", reason=reason) == 0
