"""Pictures of candidates: a lost one hides nothing else, and those of no candidate are removed."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh import Candidate, Content
from mmesh.collections import CollectionSettings
from mmesh.content import Image, Modality
from mmesh.errors import DataLoss
from services.index.commands import sweep
from services.index.config import IndexSettings
from services.index.engine import IndexEngine
from services.index.log import purge
from services.index.log.rows import NewCandidate, pictures_of
from services.index.slots import slot_of
from services.index.store.blobs import PERIOD_S, key_of
from services.index.store.garbage import Garbage, Swept, Tally
from services.index.store.objects import LocalObjects
from services.index.store.snapshot import Snapshots
from services.index.store.together import AT_A_TIME
from services.index.upkeep.sweeps import drop_orphans, sweeps
from tests.effort import patient

MODEL = "model"
EYE = np.eye(4, dtype=np.float32)


def picture(candidate_id: str, data: bytes = b"") -> Candidate:
    parts = (f"text of {candidate_id}", Image(data or candidate_id.encode(), "image/png"))
    return Candidate(candidate_id, Content(parts), {"name": candidate_id})


@pytest.fixture
def settings(tmp_path):
    return IndexSettings(
        data_dir=tmp_path / "data", scratch_dir=tmp_path / "scratch", snapshot_s=0, quiet_s=1e9
    )


@pytest.fixture
async def engine(settings):
    async with IndexEngine(settings) as engine:
        await engine.create_collection("c", 4, MODEL, CollectionSettings(), "")
        yield engine


async def put(engine, *found, request_id=""):
    return await engine.upsert("c", found, EYE[np.arange(len(found)) % 4], MODEL, request_id)


def objects(settings):
    return LocalObjects(settings.data_dir)


def lose(settings, engine, candidate_id):
    (stored,) = engine._open.log.get("c", [candidate_id])
    (name,) = pictures_of(stored.parts)
    objects(settings).delete(key_of(name))


async def test_a_lost_picture_is_named_and_the_rest_is_given(engine, settings):
    await put(engine, picture("a"), picture("b"), picture("c"))
    lose(settings, engine, "b")
    row, page = await engine.page("c", "", 10)
    listed = [await engine.candidate(row.name, one, images=True) for one in page.rows]
    for found in ((await engine.get("c", ["a", "b", "c"]))[0], listed):
        assert [one.id for one in found] == ["a", "b", "c"]
        assert [one.problem is None for one in found] == [True, False, True]
        assert isinstance(found[1].problem, DataLoss)
        assert found[0] == picture("a")
        assert found[1].attributes == {"name": "b"}
        assert found[1].content == Content(("text of b", Image(b"", "image/png")))
    without = await engine.candidate(row.name, page.rows[1], images=False)
    assert without.problem is None


def damaged():
    return metric("mmesh_index_damaged_total", what="picture")


async def test_each_damaged_picture_that_is_read_is_counted_though_no_call_fails(engine, settings):
    await put(engine, picture("a"), picture("b"), picture("c"))
    before = damaged()
    await engine.get("c", ["a", "b", "c"])
    assert damaged() == before
    lose(settings, engine, "a")
    (stored,) = engine._open.log.get("c", ["b"])
    (name,) = pictures_of(stored.parts)
    objects(settings).put(key_of(name), b"changed")
    await engine.get("c", ["a", "b", "c"])
    assert damaged() == before + 2
    await engine.candidate("c", stored, images=False)
    assert damaged() == before + 2
    await engine.candidate("c", stored, images=True)
    assert damaged() == before + 3


async def test_a_picture_that_went_with_its_candidate_is_not_damaged(engine, settings):
    await put(engine, picture("a"))
    (stored,) = engine._open.log.get("c", ["a"])
    lose(settings, engine, "a")
    await engine.delete("c", ["a"], "")
    before = damaged()
    assert (await engine.candidate("c", stored, images=True)).problem is not None
    assert damaged() == before


async def test_an_upsert_of_a_lost_picture_stores_it_again(engine, settings):
    await put(engine, picture("a"))
    lose(settings, engine, "a")
    await put(engine, picture("other", b"a"))
    assert [one.problem for one in (await engine.get("c", ["a", "other"]))[0]] == [None, None]


async def test_pictures_are_answered_up_to_a_number_of_bytes_and_few_are_read_beyond(
    engine, monkeypatch
):
    ids = [f"{n:02}" for n in range(40)]
    await put(engine, *(picture(one, one.encode() * 500) for one in ids))
    reads, read = [], engine._open.blobs.get
    monkeypatch.setattr(engine._open.blobs, "get", lambda name: reads.append(name) or read(name))
    back, left, asked = [], ids, 0
    while left:
        found, rest = await engine.get("c", ["unknown", *left], 10_000)
        assert found
        assert sum(one.size for one in found) <= 10_000
        assert [*(one.id for one in found), *rest] == left
        back, left, asked = back + found, rest, asked + 1
    assert [one.id for one in back] == ids
    assert asked == 5
    assert len(reads) <= len(ids) + asked  # one that does not fit is read for each answer
    found, left = await engine.get("c", ids[:2], 1)
    assert ([one.id for one in found], left) == (ids[:1], ids[1:2])
    without, left = await engine.get("c", ids, 10_000, images=False)
    assert (len(without), left) == (40, [])


async def test_a_row_that_is_replaced_while_it_is_read_is_read_again(engine, settings):
    await put(engine, picture("a", b"old"))
    (old,) = engine._open.log.get("c", ["a"])
    lose(settings, engine, "a")
    await put(engine, picture("a", b"new"))
    before = damaged()
    found = await engine.candidate("c", old, images=True)
    assert found == picture("a", b"new")
    assert found.problem is None
    assert damaged() == before


async def test_who_reads_a_picture_does_not_wait_for_those_that_are_stored(engine, monkeypatch):
    await put(engine, picture("a"))
    go, store = threading.Event(), engine._open.blobs.put
    monkeypatch.setattr(engine._open.blobs, "put", lambda *data: go.wait(30) and store(*data))
    writing = asyncio.create_task(put(engine, *(picture(f"b{n}") for n in range(2 * AT_A_TIME))))
    try:
        await asyncio.sleep(0.1)
        async with asyncio.timeout(patient(10)):
            (found,), _ = await engine.get("c", ["a"])
        assert found.content.images
        assert not writing.done()
    finally:
        go.set()
        await writing


async def test_the_log_is_read_beside_pictures_that_do_not_come(engine, monkeypatch):
    await put(engine, picture("a"))
    (stored,) = (await engine.page("c", "", 1))[1].rows
    began, go, get = threading.Semaphore(0), threading.Event(), engine._open.blobs.get

    def held(name):
        began.release()
        assert go.wait(patient(10))
        return get(name)

    monkeypatch.setattr(engine._open.blobs, "get", held)
    reading = [asyncio.create_task(engine.get("c", ["a"])) for _ in range(2)]
    reading += [asyncio.create_task(engine.candidate("c", stored, images=True)) for _ in range(2)]
    try:
        await asyncio.to_thread(began.acquire)
        async with asyncio.timeout(patient(5)):
            await engine.get_collection("c")
            await engine.get("c", ["a"], images=False)
        assert not any(task.done() for task in reading)
    finally:
        go.set()
        await asyncio.gather(*reading)


async def test_a_request_that_is_repeated_an_hour_later_is_the_same_request(engine):
    now = [0.0]
    engine._open.blobs._clock = lambda: now[0]
    first = await put(engine, picture("a"), request_id="r")
    now[0] += PERIOD_S
    assert await put(engine, picture("a"), request_id="r") == first


def with_picture(candidate_id, *names):
    parts = [{"text": '"image": "ab"'}, *({"image": n, "media_type": ""} for n in names)]
    vector = np.ones(2, "<f4").tobytes()
    return NewCandidate(
        candidate_id, slot_of(candidate_id), Modality.IMAGE_TEXT, "", json.dumps(parts), vector
    )


def test_the_log_names_the_pictures_of_candidates_that_there_are(writer, upsert, monkeypatch):
    monkeypatch.setattr(purge, "SOME", 2)
    writer.create("other")
    rows = [with_picture(f"id{n}", f"name{n}", "shared") for n in range(5)]
    writer.write(upsert(rows))
    writer.put("text")
    writer.write(upsert([with_picture("a", "elsewhere")], "other"))
    writer.delete("id1")
    writer.write(upsert([with_picture("id2", "newer")]))
    expected = {"name0", "name3", "name4", "newer", "shared", "elsewhere"}
    assert set(writer.log.pictures()) == expected
    writer.log.delete_collection("other")
    assert set(writer.log.pictures()) == expected - {"elsewhere"}


async def test_what_was_deleted_is_removed_and_shown(engine, settings, until):
    await put(engine, picture("a"), picture("b"))
    await engine.delete("c", ["b"], "")
    removed = metric("mmesh_index_store_removed_bytes_total")
    store, log = objects(settings), engine._open.log
    before = time.time()
    async with sweeps(log, Snapshots(store), Garbage(store, -1.0), 0.001):
        await until(lambda: metric("mmesh_index_store_removed_bytes_total") == removed + 1)
        await until(lambda: metric("mmesh_index_store_sweep_time_seconds") >= before)
    assert metric("mmesh_index_store_sweep_time_seconds") <= time.time()
    assert metric("mmesh_index_store_bytes", state="named") == 1
    assert metric("mmesh_index_store_bytes", state="waiting") == 0
    assert await engine.get("c", ["a"]) == ([picture("a")], [])


def metric(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


class FaultyLog:
    """Fails as long as it is told to."""

    error: Exception | None = None
    asked = 0

    def identity(self):
        return "log"

    def pictures(self):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return iter(())

    def collections(self):
        return []


async def test_whatever_a_sweep_raises_is_counted_and_the_next_one_comes(tmp_path, until, error):
    log, store = FaultyLog(), LocalObjects(tmp_path)
    labels, name = {"error": type(error).__name__}, "mmesh_index_gc_failures_total"
    log.error, before = error, metric(name, **labels)
    async with sweeps(log, Snapshots(store), Garbage(store, -1.0), 0.001) as periodic:
        await until(lambda: metric(name, **labels) >= before + 2)
        log.error, asked = None, log.asked
        await until(lambda: log.asked > asked + 1)
        assert periodic._task.is_well


async def test_snapshots_of_collections_that_are_gone_are_removed(engine, settings):
    store = objects(settings)
    kept = engine._open.log.collection("c").epoch
    for epoch in (kept, "gone"):
        store.put(f"snapshots/{epoch}/000-255/00000001.json", b"{}")
    drop_orphans(engine._open.log, Snapshots(store), 3600.0)
    assert len(store.list("snapshots")) == 2  # too young
    drop_orphans(engine._open.log, Snapshots(store), -1.0)
    assert [kept in entry.key for entry in store.list("snapshots")] == [True]


async def test_the_command_says_what_is_there(engine, settings, capsys, monkeypatch):
    await put(engine, picture("a"), picture("b"))
    await engine.delete("c", ["b"], "")
    command = ["--data-dir", str(settings.data_dir)]
    assert sweep.main([*command, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    one = {"objects": 1, "size": 1}
    assert found == {"named": one, "waiting": one, "removed": {"objects": 0, "size": 0}}
    assert sweep.main(command) == 0
    assert "1 pictures (0.0 MB) of candidates" in capsys.readouterr().out


def test_the_command_makes_no_log_where_there_is_none(tmp_path, capsys):
    assert sweep.main(["--data-dir", str(tmp_path)]) == 1
    assert "there is no log" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sums_of_sweeps():
    one = Swept(Tally(1, 2), Tally(3, 4), Tally(5, 6))
    assert (one + one).removed == Tally(10, 12)
    assert one.left == Tally(4, 6)
