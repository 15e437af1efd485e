"""Building segments, in this process and in a real worker process."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pytest

from mmesh.errors import DataLoss
from services.index.build.builder import Builder, BuildFailed, BuildOrder, Input, Patience
from services.index.build.worker import build
from services.index.segments import bitmap, exact, files
from services.index.segments.delta import Delta
from services.index.segments.ids import hashes_of
from services.index.segments.segment import Segment

DIM = 16


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    exact.single_threaded()  # others wait for each other by spinning, which a busy machine feels


def delta_of(rows, first=0, seed=0):
    rng = np.random.default_rng([seed, first])
    vectors = rng.normal(size=(rows, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"id{first + n}" for n in range(rows)]
    attributes = [json.dumps({"n": first + n}) if n % 3 else "" for n in range(rows)]
    delta = Delta(DIM, rows)
    delta.append_many(ids, hashes_of(ids), attributes, vectors)
    return delta


def saved(path, rows, first=0):
    path.mkdir()
    delta_of(rows, first).save(path)
    return path


@pytest.fixture
async def builder(tmp_path):
    async with Builder(nice=5, threads=1, scratch=tmp_path / "scratch") as builder:
        yield builder


def check_rows(segment, deltas):
    """Check that the segment has exactly the living rows of the deltas, in order."""
    everything = np.arange(len(segment))
    kept = [bitmap.rows_of(np.frombuffer(d.alive_bits(), np.uint8), len(d)) for d in deltas]
    pairs = list(zip(deltas, kept, strict=True))
    ids = [one for delta, rows in pairs for one in delta.ids(rows)]
    assert segment.ids(everything) == ids
    assert segment.find(hashes_of(ids), ids).tolist() == everything.tolist()
    attributes = [one for delta, rows in pairs for one in delta.attributes(rows)]
    assert segment.attributes(everything) == attributes
    vectors = np.concatenate([delta.vectors(rows) for delta, rows in pairs])
    np.testing.assert_allclose(segment.vectors(everything), vectors, atol=1e-3)


async def test_a_segment_has_the_kept_rows_of_its_inputs(builder, tmp_path):
    deltas, inputs = [delta_of(1000), delta_of(700, 1000), delta_of(10, 1700)], []
    for number, delta in enumerate(deltas):
        delta.kill(np.arange(number * 3, len(delta), 2 + number))
        (tmp_path / f"in{number}").mkdir()
        delta.save(tmp_path / f"in{number}")
        inputs.append(Input(tmp_path / f"in{number}", delta.alive_bits()))
    output = await builder.build(BuildOrder(tuple(inputs), tmp_path / "out"))
    segment = Segment.open(output)
    assert (segment.index_factory, segment.recall, segment.dead) == ("Flat", 1.0, 0)
    check_rows(segment, deltas)
    assert not list((tmp_path / "scratch").iterdir())
    again = await builder.build(BuildOrder((Input(output),), tmp_path / "again", "SQfp16"))
    check_rows(Segment.open(again), deltas)


async def test_a_segment_may_be_empty(builder, tmp_path):
    inputs = (Input(saved(tmp_path / "in", 9), bytes(2)),)
    segment = Segment.open(await builder.build(BuildOrder(inputs, tmp_path / "out", "IVF1,Flat")))
    assert len(segment) == 0
    assert segment.search(np.ones((1, DIM), np.float32), 5)[1].shape == (1, 0)


def test_a_quantiser_is_trained_once(tmp_path):
    factory = "IVF16,PQ8x4fs,Refine(SQfp16)"
    first = {"inputs": [{"folder": str(saved(tmp_path / "a", 2000))}], "index_factory": factory}
    build({**first, "output": str(tmp_path / "first")})
    inputs = [
        {"folder": str(saved(tmp_path / "b", 900, 2000))},
        {"folder": str(tmp_path / "first")},
    ]
    build({"inputs": inputs, "index_factory": factory, "output": str(tmp_path / "second")})
    first, second = (Segment.open(tmp_path / name) for name in ("first", "second"))
    centres = [
        faiss.extract_index_ivf(s._structure.index).quantizer.reconstruct_n(0, 16)
        for s in (first, second)
    ]
    np.testing.assert_array_equal(*centres)
    check_rows(second, [delta_of(900, 2000), delta_of(2000)])


def centres_of(path):
    index = Segment.open(path)._structure.index
    return faiss.extract_index_ivf(index).quantizer.reconstruct_n(0, 16)


@pytest.mark.parametrize(("rows", "retrain"), [(2100, False), (900, True)])
def test_a_quantiser_is_trained_anew_on_many_other_rows_or_when_asked(tmp_path, rows, retrain):
    factory = "IVF16,PQ8x4fs,Refine(SQfp16)"
    first = {"inputs": [{"folder": str(saved(tmp_path / "a", 2000))}], "index_factory": factory}
    build({**first, "output": str(tmp_path / "first")})
    folders = saved(tmp_path / "b", rows, 2000), tmp_path / "first"
    order = {"inputs": [{"folder": str(one)} for one in folders], "index_factory": factory}
    build({**order, "retrain": retrain, "output": str(tmp_path / "second")})
    assert (centres_of(tmp_path / "first") != centres_of(tmp_path / "second")).any()


def test_the_range_of_numbers_is_not_that_of_the_first_rows(tmp_path):
    """A range of a few rows, kept for ever, left a recall of 0.5."""
    path, previous, first = tmp_path / "first", None, 0
    for number, rows in enumerate((1000, 1200, 1500)):
        delta = delta_of(rows, first, seed=number)
        delta._vectors[:rows] *= 10.0**number  # as other topics have other ranges
        (tmp_path / f"delta-{number}").mkdir()
        delta.save(tmp_path / f"delta-{number}")
        inputs = [{"folder": str(tmp_path / f"delta-{number}")}]
        inputs += [{"folder": str(previous)}] if previous else []
        path, first = tmp_path / f"out-{number}", first + rows
        build({"inputs": inputs, "index_factory": "SQ8", "output": str(path)})
        previous = path
    ranges = faiss.vector_to_array(Segment.open(path)._structure.index.sq.trained)
    assert ranges[DIM:].max() > 50  # the widest, which came last


@pytest.mark.parametrize("factory", ["PCAR4,Flat", "PCAR4,Flat,RFlat"])
def test_the_recall_of_vectors_that_were_cut_is_measured(tmp_path, factory):
    order = {"inputs": [{"folder": str(saved(tmp_path / "in", 2000))}], "index_factory": factory}
    about = build({**order, "output": str(tmp_path / "out")})
    queries = delta_of(2000).vectors(np.arange(200))
    _, expected = Segment.open(tmp_path / "in").search(queries, 10)
    _, found = Segment.open(tmp_path / "out").search(queries, 10)
    hits = sum(len(np.intersect1d(*pair)) for pair in zip(expected, found, strict=True))
    assert about.recall < 1
    assert about.recall == pytest.approx(hits / expected.size, abs=0.1)


def test_the_stored_recall_is_what_given_queries_get(tmp_path):
    path = saved(tmp_path / "in", 5000)
    queries = delta_of(300, seed=5).vectors(np.arange(300))
    np.save(tmp_path / "queries.npy", queries)
    order = {"inputs": [{"folder": str(path)}], "index_factory": "IVF64,Flat"}
    order |= {"recall_target": 0.9, "queries": str(tmp_path / "queries.npy")}
    about = build({**order, "output": str(tmp_path / "out")})
    _, expected = Segment.open(path).search(queries, 10)
    _, found = Segment.open(tmp_path / "out").search(queries, 10)
    hits = sum(len(np.intersect1d(*pair)) for pair in zip(expected, found, strict=True))
    assert about.recall == pytest.approx(hits / expected.size, abs=1e-3)
    assert about.recall >= 0.9


async def test_a_damaged_input_is_data_loss_and_leaves_nothing(builder, tmp_path):
    path = saved(tmp_path / "in", 100)
    (path / files.ROWS).unlink()
    with pytest.raises(DataLoss):
        await builder.build(BuildOrder((Input(path),), tmp_path / "out"))
    with pytest.raises(DataLoss, match="kept"):
        await builder.build(BuildOrder((Input(saved(tmp_path / "b", 99), b""),), tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "in", "scratch"]


async def test_what_faiss_refuses_is_a_failed_build(builder, tmp_path):
    inputs = (Input(saved(tmp_path / "in", 100)),)
    with pytest.raises(BuildFailed, match="nonsense"):
        await builder.build(BuildOrder(inputs, tmp_path / "out", "nonsense"))
    await builder.build(BuildOrder(inputs, tmp_path / "out"))


def wait_for_work(folder):
    while not list(folder.glob("*.unfinished")):
        time.sleep(0.01)


async def started(builder, order):
    """Start an order that takes long, and return once its worker is at it."""
    building = asyncio.create_task(builder.build(order))
    await asyncio.to_thread(wait_for_work, order.output.parent)
    return building, builder._worker.pid


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def long_order(tmp_path):
    return BuildOrder((Input(saved(tmp_path / "in", 20_000)),), tmp_path / "out", "HNSW64")


async def test_a_worker_that_dies_fails_its_order_and_the_next_gets_another(
    builder, long_order, tmp_path
):
    building, pid = await started(builder, long_order)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BuildFailed, match=r"ended with code (-9|255)"):
        await building
    assert not list(tmp_path.glob("*.unfinished"))
    await builder.build(BuildOrder(long_order.inputs, tmp_path / "out"))
    assert builder._worker.pid != pid


async def test_cancelling_ends_the_worker_and_its_work(builder, long_order, tmp_path):
    building, pid = await started(builder, long_order)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert not is_running(pid)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "scratch"]


async def test_a_build_that_takes_far_too_long_is_ended(long_order, tmp_path):
    patience = Patience(least_s=0.2, value_s=0.0)
    scratch = tmp_path / "scratch"
    async with Builder(nice=5, threads=1, scratch=scratch, patience=patience) as builder:
        with pytest.raises(BuildFailed, match="took over 0 s and was ended"):
            await builder.build(long_order)
        assert builder._worker is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "scratch"]


async def test_a_worker_that_is_not_heard_any_more_is_ended(builder, long_order, tmp_path):
    # costs the start of two workers, about 4 s
    building, pid = await started(builder, long_order)
    builder._worker.stderr.set_exception(OSError(5, "the pipe broke"))
    with pytest.raises(BuildFailed, match="-9"):
        await building
    assert not is_running(pid)
    await builder.build(BuildOrder(long_order.inputs, tmp_path / "out"))


async def test_leaving_ends_the_worker(long_order, tmp_path):
    async with Builder(nice=0, threads=1, scratch=tmp_path / "scratch") as builder:
        await builder.build(BuildOrder(long_order.inputs, tmp_path / "out"))
        pid = builder._worker.pid
        assert is_running(pid)
    assert not is_running(pid)


def test_a_worker_ends_with_its_owner_in_the_middle_of_an_order(long_order, tmp_path):
    worker = subprocess.Popen(
        [sys.executable, "-m", "services.index.build.builder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    inputs = [{"folder": str(entry.folder)} for entry in long_order.inputs]
    order = {"inputs": inputs, "output": str(tmp_path / "out"), "index_factory": "HNSW64"}
    worker.stdin.write(json.dumps(order).encode() + b"\n")
    worker.stdin.flush()
    wait_for_work(tmp_path)
    worker.stdin.close()
    assert worker.wait(timeout=10) == 0
    assert worker.stdout.read() == b""
    worker.stdout.close()
