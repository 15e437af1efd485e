"""Ingest streams with vectors that were made elsewhere, on an index that is easy to look into."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest

from mmesh.candidates import Candidate, Collection
from mmesh.content import Content
from mmesh.errors import DimMismatch, InvalidField
from mmesh.vectors import unit_rows
from services.gateway.catalog import Catalog
from services.gateway.interfaces import Embeddings
from services.gateway.writes.draft import Draft, Refused
from services.gateway.writes.ingest import Batch, Ingester, Stream

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


async def run(store: Store, *batches: Batch):
    async def stream():
        for batch in batches:
            yield batch

    begin = partial(Draft, NoEncoder(), store, Catalog(store))
    ingester = Ingester(begin, window=4, patience_s=1.0)
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
