"""Ingest streams: how much is under way, what ends them, and vectors that were made elsewhere."""

from __future__ import annotations

import asyncio
import weakref
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest

from mmesh.candidates import Candidate
from mmesh.collections import Collection
from mmesh.content import Content
from mmesh.errors import DeadlineExceeded, DimMismatch, InvalidField, Overloaded, Unavailable
from mmesh.vectors import unit_rows
from services.gateway.catalog import Catalog
from services.gateway.interfaces import Embeddings
from services.gateway.writes import ingest
from services.gateway.writes.draft import Draft, Refused
from services.gateway.writes.ingest import (
    CALM_BATCHES,
    Batch,
    BatchLimit,
    Ingester,
    Stored,
    Stream,
    until,
)

DIM = 4


class Store:
    """Keeps what is written; refuses bad rows as the index does."""

    def __init__(self) -> None:
        self.rows: dict[str, np.ndarray] = {}
        self.fingerprints: set[str] = set()
        self.request_ids: list[str] = []

    async def get_collection(self, name, deadline):
        return Collection(name, DIM, "m", {}, 1, datetime.now(UTC), "e:1")

    async def upsert(self, collection, candidates, vectors, request_id, deadline, **_):
        self.request_ids.append(request_id)
        if vectors.rows.shape[1] != DIM:
            raise DimMismatch(f"is {vectors.rows.shape[1]} wide")
        rows = unit_rows(vectors.rows)
        self.fingerprints.add(vectors.fingerprint)
        self.rows |= {one.id: row for one, row in zip(candidates, rows, strict=True)}
        return "e:1"


class NoEncoder:
    """Must not be asked."""

    async def encode(self, *_, **__):
        pytest.fail("nothing is to be encoded")


def candidates(count: int, start: int = 0) -> list[Candidate]:
    return [Candidate(f"c{n}", Content.of(f"text {n}")) for n in range(start, start + count)]


async def run(store: Store, *batches: Batch, patience_s: float = 1.0):
    async def stream():
        for batch in batches:
            yield batch

    begin = partial(Draft, NoEncoder(), store, Catalog(store))
    ingester = Ingester(begin, window=4, most_bytes=1 << 20, patience_s=patience_s)
    return [stored async for stored in ingester.run(Stream("photos", "ingest"), stream())]


async def test_vectors_that_are_given_are_stored_without_the_encoder():
    store, rows = Store(), np.eye(DIM, dtype=np.float32)
    (stored,) = await run(store, Batch(1, candidates(DIM), Embeddings(rows, "m")))
    assert (stored.stored, stored.refused) == (DIM, [])
    assert store.fingerprints == {"m"}
    assert all((store.rows[f"c{n}"] == rows[n]).all() for n in range(DIM))


async def test_candidates_with_bad_vectors_are_refused_by_number_and_the_rest_is_stored():
    store, rows = Store(), np.random.default_rng(1).normal(size=(6, DIM)).astype(np.float32)
    rows[1], rows[4, 2] = 0, np.nan
    batch: list[Candidate | Refused] = list(candidates(6))
    batch[2] = Refused("c2", 2, InvalidField("candidates[2].id", "is odd"))
    (stored,) = await run(store, Batch(1, batch, Embeddings(rows, "m")))
    assert [(one.id, one.number, one.error.field) for one in stored.refused] == [
        ("c1", 1, "vectors[1]"),
        ("c2", 2, "candidates[2].id"),
        ("c4", 4, "vectors[4]"),
    ]
    assert sorted(store.rows) == ["c0", "c3", "c5"]
    for number in (0, 3, 5):
        np.testing.assert_array_equal(store.rows[f"c{number}"], unit_rows(rows[[number]])[0])
    assert len(set(store.request_ids)) == 3  # each write is another one


async def test_vectors_of_another_width_end_the_stream():
    with pytest.raises(DimMismatch):
        await run(Store(), Batch(1, candidates(2), Embeddings(np.ones((2, 9), np.float32), "m")))


class BusyStore(Store):
    """Takes its time over the first batch, and is away for a moment when the second comes."""

    async def upsert(self, collection, candidates, *rest, **named):
        if not self.request_ids:
            await asyncio.sleep(0.3)
        elif len(self.request_ids) == 1:
            self.request_ids.append("lost")
            error = Unavailable("restarting")
            error.retry_after_s = 0.01
            raise error
        return await super().upsert(collection, candidates, *rest, **named)


async def test_the_time_that_a_batch_waits_for_its_turn_takes_none_of_its_patience():
    rows = np.eye(DIM, dtype=np.float32)
    batches = [Batch(n, candidates(DIM, n * DIM), Embeddings(rows, "m")) for n in (1, 2)]
    stored = await run(BusyStore(), *batches, patience_s=0.2)
    assert [one.stored for one in stored] == [DIM, DIM]


class SlowStore(Store):
    """Needs more time than the first attempts have."""

    async def upsert(self, collection, candidates, vectors, request_id, deadline, **options):
        if deadline.remaining() < 0.07:
            await asyncio.sleep(deadline.remaining())
            raise DeadlineExceeded("late")
        return await super().upsert(
            collection, candidates, vectors, request_id, deadline, **options
        )


async def test_a_batch_that_is_late_gets_more_time_and_slows_its_client_down(monkeypatch):
    monkeypatch.setattr(ingest, "ATTEMPT_S", 0.02)
    monkeypatch.setattr(ingest, "PAUSE_S", 0.001)
    rows = np.eye(DIM, dtype=np.float32)
    (stored,) = await run(SlowStore(), Batch(1, candidates(DIM), Embeddings(rows, "m")))
    assert (stored.stored, stored.was_overloaded) == (DIM, True)


# -- the window


def batch_of(sequence):
    return Batch(sequence, [Candidate(f"c{sequence}", Content.of("a text"))])


class Source:
    """Batches without end; says how many were read."""

    def __init__(self, count=1000):
        self.read, self.count = 0, count

    async def batches(self):
        while self.read < self.count:
            self.read += 1
            yield batch_of(self.read)


async def settle():
    for _ in range(50):
        await asyncio.sleep(0)


def ingester_of(encoder, index, window=8, most_bytes=1 << 20):
    begin = partial(Draft, encoder, index, Catalog(index))
    return Ingester(begin, window=window, most_bytes=most_bytes, patience_s=60.0)


STREAM = Stream("photos", "ingest")


@pytest.mark.parametrize("window", [1, 2, 8])
async def test_so_many_batches_are_read_as_the_window_has_and_no_more(encoder, index, window):
    source, hang = Source(), encoder.hang("encode")
    running = ingester_of(encoder, index, window).run(STREAM, source.batches())
    first = asyncio.ensure_future(anext(running))
    await settle()
    assert source.read == window
    assert encoder.calls["encode"] == window
    hang.free.set()
    assert (await first).sequence == 1
    await settle()
    assert source.read == window, "the first is not acknowledged before the next is asked for"
    for sequence in range(2, 20):
        assert (await anext(running)).sequence == sequence
        await settle()
        assert source.read == window + sequence - 1
    await running.aclose()


class Candidates(list):
    """What can be referred to weakly."""


class LargeSource(Source):
    """Batches of a size; knows the last one while somebody holds it."""

    def __init__(self, size):
        super().__init__()
        self.size, self.last = size, None

    async def batches(self):
        while True:
            self.read += 1
            candidates = Candidates([Candidate(f"c{self.read}", Content.of("x" * self.size))])
            self.last = weakref.ref(candidates)
            batch = [Batch(self.read, candidates)]
            del candidates
            yield batch.pop()


async def test_streams_share_the_bytes_that_are_under_way(encoder, index):
    ingester = ingester_of(encoder, index, 8, most_bytes=500_000)
    sources, hang = [LargeSource(100_000) for _ in range(3)], encoder.hang("encode")
    streams = [
        ingester.run(Stream("photos", f"ingest {n}"), source.batches())
        for n, source in enumerate(sources)
    ]
    firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await settle()
    assert encoder.calls["encode"] == 5
    assert sum(source.read for source in sources) == 5 + len(sources)  # each has one that waits
    hang.free.set()
    assert [stored.sequence for stored in await asyncio.gather(*firsts)] == [1, 1, 1]
    for stream in streams:
        await stream.aclose()
    assert (ingester._bytes.held_bytes, ingester._bytes.waiting_bytes) == (0, 0)


async def test_a_stream_that_waits_for_its_next_batch_holds_none(encoder, index):
    source = LargeSource(100_000)
    running = ingester_of(encoder, index, window=1).run(STREAM, source.batches())
    await anext(running)
    await settle()
    assert source.last() is None
    await running.aclose()


async def test_a_stream_that_ends_gives_every_batch_and_leaves_nothing(encoder, index):
    running = ingester_of(encoder, index, 2).run(STREAM, Source(7).batches())
    assert [stored.sequence async for stored in running] == list(range(1, 8))
    assert len(asyncio.all_tasks()) == 1


async def test_closing_a_stream_leaves_no_task(encoder, index):
    encoder.hang("encode")
    running = ingester_of(encoder, index).run(STREAM, Source().batches())
    waiting = asyncio.ensure_future(anext(running))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await running.aclose()
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_ends_the_stream_and_what_comes_after_it_is_not_stored(encoder, index):
    class Failing(Source):
        async def batches(self):
            yield batch_of(1)
            raise InvalidField("batch.sequence", "is odd")

    running = ingester_of(encoder, index).run(STREAM, Failing().batches())
    assert (await anext(running)).sequence == 1
    with pytest.raises(InvalidField):
        await anext(running)
    assert len(asyncio.all_tasks()) == 1


async def test_batches_are_stored_in_order_whichever_is_encoded_first(encoder, index):
    hang = encoder.hang("encode")
    running = ingester_of(encoder, index).run(STREAM, Source(4).batches())
    first = asyncio.ensure_future(anext(running))
    await hang.begun.wait()
    encoder.faults.clear()  # those after the first do not wait
    await settle()
    assert list(index.stored) == []
    hang.free.set()
    await first
    assert [stored.sequence async for stored in running] == [2, 3, 4]
    assert list(index.stored) == ["c1", "c2", "c3", "c4"]


# -- the end of a stream


async def test_batches_end_when_the_server_stops_even_while_none_comes():
    async def silent():
        try:
            yield batch_of(1)
            await asyncio.Event().wait()
        finally:
            closed.set()

    stop, closed = asyncio.Event(), asyncio.Event()
    batches = until(stop, silent())
    assert (await anext(batches)).sequence == 1
    waiting = asyncio.ensure_future(anext(batches, None))
    await settle()
    stop.set()
    assert await waiting is None
    assert closed.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_batches_that_nobody_waits_for_any_more_leave_no_task():
    async def silent():
        await asyncio.Event().wait()
        yield batch_of(1)

    batches = until(asyncio.Event(), silent())
    waiting = asyncio.ensure_future(anext(batches))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert len(asyncio.all_tasks()) == 1


async def test_what_is_wrong_with_a_stream_is_raised():
    async def broken():
        yield batch_of(1)
        raise InvalidField("batch.sequence", "is odd")

    batches = until(asyncio.Event(), broken())
    assert (await anext(batches)).sequence == 1
    with pytest.raises(InvalidField):
        await anext(batches)
    assert len(asyncio.all_tasks()) == 1


# -- overload


def stored_of(was_overloaded):
    return Stored(1, 1, "e:1", [], was_overloaded)


def test_batches_are_small_after_an_overload_until_it_is_over():
    limit = BatchLimit(16, 256)
    told = [limit.note(stored_of(overloaded)) for overloaded in (False, True, True)]
    assert told == [None, 16, None]
    told = [limit.note(stored_of(False)) for _ in range(2 * CALM_BATCHES)]
    assert told == [None] * (CALM_BATCHES - 1) + [256] + [None] * CALM_BATCHES
    assert limit.note(stored_of(True)) == 16


async def test_a_batch_that_waited_for_a_full_service_says_so(encoder, index):
    class Full(Overloaded):
        retry_after_s = 0.01

    upsert, refusals = index.upsert, [Full("full"), Full("full")]

    async def full_at_first(*arguments, **options):
        if refusals:
            raise refusals.pop()
        return await upsert(*arguments, **options)

    index.upsert = full_at_first
    running = ingester_of(encoder, index, 1).run(STREAM, Source(3).batches())
    assert [stored.was_overloaded async for stored in running] == [True, False, False]
