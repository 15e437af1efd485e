"""Gauges say what the shard holds now, whether anybody asks it or not."""

import pytest
from prometheus_client import REGISTRY

from mmesh.serving.deadline import Deadline
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
            assert gauge("refused_collections") == 0


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


async def test_a_collection_that_would_not_fit_is_counted(follow, writer):
    writer.put("a", collection="gauged")
    async with follow(limit=1) as follower:
        await follower.loaded()
        Gauges(follower).export()
        assert gauge("refused_collections") == 2
        assert gauge("lag_writes", collection="gauged") == 1
    async with follow() as follower:
        await follower.loaded()
        Gauges(follower).export()
        assert gauge("refused_collections") == 0
