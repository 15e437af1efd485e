"""Pages of the log that are damaged: one collection pays for it, and says so; no process ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from contextlib import asynccontextmanager, closing

import numpy as np
import psycopg
import pytest
from prometheus_client import REGISTRY

from mmesh import Candidate, Content
from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from mmesh.errors import DataLoss, LogUnavailable, MmeshError
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.vector_search import VectorSearch
from services.index import metrics
from services.index.config import IndexSettings
from services.index.engine import IndexEngine
from services.index.log.databases.engines import open_database
from services.index.log.databases.sqlite import PAGE_BYTES
from services.index.log.log import Log

DIM, MODEL, ROWS = 64, "model", 300


@pytest.fixture
def start(tmp_path):
    @asynccontextmanager
    async def start():
        settings = IndexSettings(
            data_dir=tmp_path, scratch_dir=tmp_path / "scratch", poll_s=0.01, snapshot_s=0
        )
        async with IndexEngine(settings) as engine:
            yield engine

    return start


async def put(engine, collection, *numbers):
    rows = [Candidate(f"{collection}-{n}", Content.of(f"text {n} " * 20)) for n in numbers]
    vectors = np.random.default_rng(1).standard_normal((len(rows), DIM)).astype(np.float32)
    return await engine.upsert(collection, rows, vectors, MODEL, "")


async def count(engine, collection, consistency=Consistency.STRONG):
    queries = np.ones((1, DIM), np.float32)
    order = VectorSearch(collection, queries, MODEL, (Modality.TEXT,), 1000, None, consistency, "")
    return len((await engine.search(order, Deadline.after(10))).lists[0][0].ids)


@pytest.fixture
async def filled(start, tmp_path):
    """The file of a log with the collections "sound" and "bad", whose rows are on pages apart."""
    async with start() as engine:
        for name in ("bad", "sound"):
            await engine.create_collection(name, DIM, MODEL, CollectionSettings(), "")
            await put(engine, name, *range(ROWS))
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def pages_of(path, mark, other):
    """Return the numbers of pages with rows of one collection and of no other."""
    data = path.read_bytes()
    pages = [data[start : start + PAGE_BYTES] for start in range(0, len(data), PAGE_BYTES)]
    held = [n for n, page in enumerate(pages) if mark in page and b'[{"text"' in page]
    return [n for n in held if other not in pages[n]]


def damage(path, page):
    with path.open("r+b") as file:
        file.seek(page * PAGE_BYTES)
        file.write(random.Random(page).randbytes(PAGE_BYTES))


def metric(name, **labels):
    return REGISTRY.get_sample_value(f"mmesh_index_{name}", labels)


def looks_that_failed():
    samples = metrics.tail_failures_total.collect()[0].samples
    return sum(one.value for one in samples if one.name.endswith("_total"))


@pytest.mark.parametrize("place", [0, -1])
async def test_a_damaged_page_is_data_loss_of_its_collection_alone(start, filled, place):
    damage(filled, pages_of(filled, b"bad-", b"sound-")[place])
    async with start() as engine:
        assert await count(engine, "sound") == ROWS
        for consistency in (Consistency.STRONG, Consistency.EVENTUAL):
            with pytest.raises(DataLoss, match="restore a copy"):
                await count(engine, "bad", consistency)
        writes = [put(engine, "sound", ROWS + n) for n in range(5)]
        lost = put(engine, "bad", *range(ROWS))
        outcomes = await asyncio.gather(*writes, lost, return_exceptions=True)
        assert isinstance(outcomes.pop(), DataLoss)
        assert all(isinstance(token, str) for token in outcomes)
        assert await count(engine, "sound") == ROWS + 5


async def test_rows_that_are_damaged_are_told_as_such_and_not_as_a_log_that_is_away(
    start, filled, until
):
    damage(filled, pages_of(filled, b"bad-", b"sound-")[0])
    damaged, looks = metric("damaged_total", what="log"), looks_that_failed()
    async with start() as engine:
        await until(lambda: metric("damaged_total", what="log") >= damaged + 2)
        assert list(engine._open.follower.refused) == ["bad"]
        assert metric("collection_failures_total", error="DataLoss") >= 2
    assert looks_that_failed() == looks


async def test_a_file_that_is_damaged_as_a_whole_is_told_while_it_is_waited_for(
    filled, tmp_path, until
):
    damage(filled, 0)
    settings = IndexSettings(data_dir=tmp_path, scratch_dir=tmp_path / "s", snapshot_s=0)
    before = metric("damaged_total", what="log")
    entering = asyncio.create_task(IndexEngine(settings).__aenter__())
    await until(lambda: metric("damaged_total", what="log") > before)
    entering.cancel()
    await asyncio.wait([entering])


async def test_a_damaged_page_keeps_no_other_collection_from_being_purged(start, filled):
    async with start() as engine:
        await engine.delete("sound", [f"sound-{n}" for n in range(10)], "")
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("UPDATE candidates SET deleted_s = 1 WHERE id LIKE 'bad-%'")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for page in pages_of(filled, b"bad-", b"sound-"):
        damage(filled, page)
    log = Log(f"sqlite:///{filled}")
    with pytest.raises(DataLoss):
        log.purge(-10)
    assert log.collection("sound").purged > 0
    log.close()


@pytest.mark.parametrize("seed", range(12))
async def test_whichever_page_is_damaged_no_answer_is_anything_but_right_or_an_error(
    start, filled, seed
):
    """Pages 0 and 1 are those of the file itself: see below. About 3 s."""
    pages = filled.stat().st_size // PAGE_BYTES
    damage(filled, random.Random(seed).randrange(2, pages))
    opening = start()
    try:
        engine = await asyncio.wait_for(opening.__aenter__(), 5)
    except TimeoutError:
        return  # it waits, and says why
    for name in ("bad", "sound"):
        for consistency in (Consistency.STRONG, Consistency.EVENTUAL):
            with contextlib.suppress(DataLoss):
                assert await count(engine, name, consistency) == ROWS
    await opening.__aexit__(None, None, None)


async def test_a_file_that_is_damaged_as_a_whole_is_waited_for_until_it_is_put_back(
    filled, tmp_path
):
    sound = filled.read_bytes()
    damage(filled, 0)
    settings = IndexSettings(data_dir=tmp_path, scratch_dir=tmp_path / "s", snapshot_s=0)
    engine = IndexEngine(settings)
    entering = asyncio.create_task(engine.__aenter__())
    async with asyncio.timeout(10):
        while True:
            with pytest.raises(MmeshError) as refused:
                await engine.get_collection("sound")
            if isinstance(refused.value, DataLoss):
                break
            await asyncio.sleep(0.01)
    filled.write_bytes(sound)
    await asyncio.wait_for(entering, 10)
    assert await count(engine, "sound") == ROWS
    await engine.__aexit__(None, None, None)


# -- what drivers raise where SQLAlchemy does not see it


@pytest.mark.parametrize(
    ("url", "error", "meaning"),
    [
        ("sqlite:///{}", sqlite3.OperationalError("Could not decode to UTF-8 column"), DataLoss),
        ("sqlite:///{}", sqlite3.OperationalError("disk I/O error"), LogUnavailable),
        ("postgresql+psycopg://h/d", psycopg.errors.DataCorrupted("invalid page"), DataLoss),
        ("postgresql+psycopg://h/d", psycopg.errors.IndexCorrupted("no tuple"), DataLoss),
        ("postgresql+psycopg://h/d", psycopg.OperationalError("lost"), LogUnavailable),
        ("postgresql+psycopg://h/d", psycopg.errors.AdminShutdown("ends"), LogUnavailable),
    ],
)
def test_an_error_of_a_driver_is_given_its_meaning_wherever_it_comes_from(
    tmp_path, url, error, meaning
):
    database = open_database(url.format(tmp_path / "log.db"))
    with pytest.raises(meaning), database.reporting():
        raise error
    database.close()
