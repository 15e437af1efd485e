"""Exact passes against an oracle: a dict, searched with a plain matrix product."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.filters import Compare, Operator
from services.index.build.worker import build
from services.index.log.rows import Rows
from services.index.segments.delta import Delta
from services.index.segments.segment import Segment
from services.index.upkeep.exact_pass import Agreement, ExactPass
from services.index.view.view import View
from services.index.view.watch import Watch

DIM = 8
CUTS = (1, 10, 100)
EVEN = Compare("even", Operator.EQUAL, True)


def write(view, numbers, vectors):
    """Write texts by number; those whose vectors are zeros are deleted."""
    gone = ~vectors.any(axis=1)
    texts = [
        "" if g else json.dumps({"even": n % 2 == 0}) for n, g in zip(numbers, gone, strict=True)
    ]
    ids, seqs = [f"id{n}" for n in numbers], view.applied + 1 + np.arange(len(numbers))
    rows = Rows(ids, [Modality.TEXT] * len(ids), texts, seqs, gone, vectors)
    view.apply(rows, int(seqs[-1]))


def random_vectors(random, n):
    vectors = random.normal(size=(n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def watched(view, query, limit, condition=None, hits=None):
    """Return a watch of a search that found what the view finds, or `hits`."""
    watch = Watch(view, Modality.TEXT, query, limit, condition, (0, 0), lambda _: None)
    watch.begin()
    watch.end(view.search(query, [Modality.TEXT], limit, condition))
    assert watch.error is None
    watch.hits = watch.hits if hits is None else hits
    return watch


def agreement(watch, **options):
    exactly = ExactPass(watch, watch.seen, max(CUTS), **options)
    steps = 1
    while exactly.step():
        steps += 1
    return exactly.agreement(CUTS), steps


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """Folders of a flat, a quantised and a refined segment, each with rows of its own."""
    random, folders = np.random.default_rng(0), []
    for number, factory in enumerate(["Flat", "PQ4x4fs", "IVF4,PQ4x4fs,Refine(SQfp16)"]):
        folder = tmp_path_factory.mktemp("segment")
        view = View("c", "e", DIM, 1_000)
        write(view, range(1_000 * number, 1_000 * number + 400), random_vectors(random, 400))
        view.partitions[Modality.TEXT].blocks[0].save(folder)
        output = folder.with_name(f"{folder.name}-built")
        order = {"inputs": [{"folder": str(folder)}], "output": str(output)}
        build(order | {"index_factory": factory})
        folders.append(output)
    return folders


def contents(view):
    """Return id and vector of all that a view has."""
    found = {}
    for block in view.partitions[Modality.TEXT].blocks:
        alive = np.unpackbits(np.frombuffer(block.alive_bits(), np.uint8), bitorder="little")
        rows = np.flatnonzero(alive[: len(block)])
        found.update(zip(block.ids(rows), block.vectors(rows), strict=True))
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    is_filtered=st.booleans(),
    piece=st.sampled_from([1, 800, 1 << 28]),
)
def test_it_counts_what_a_matrix_product_counts(segments, seed, is_filtered, piece):
    random = np.random.default_rng(seed)
    opened = [Segment.open(folder) for folder in segments]
    view = View("c", "e", DIM, 50, segments={Modality.TEXT: opened})
    for _ in range(4):
        numbers = np.unique(random.integers(3_000, size=40)).tolist()
        write(
            view,
            numbers,
            random_vectors(random, len(numbers)) * (random.random((len(numbers), 1)) < 0.5),
        )
    query, limit = random_vectors(random, 1), int(random.choice([100, 300]))
    watch = watched(view, query, limit, EVEN if is_filtered else None)
    held = contents(view)
    write(view, range(0, 3_000, 7), random_vectors(random, 429))  # which is too late
    there = {
        one: float(vector @ query[0])
        for one, vector in held.items()
        if not is_filtered or int(one[2:]) % 2 == 0
    }
    nearest = sorted(there, key=there.__getitem__, reverse=True)
    found, steps = agreement(watch, piece_numbers=piece)
    assert found == {k: Agreement(len({*watch.hits[:k]} & {*nearest[:k]}), k) for k in CUTS}
    assert (steps > 20) == (piece == 1)


def test_of_equal_candidates_any_will_do():
    view, query = View("c", "e", DIM, 1_000), np.eye(1, DIM, dtype=np.float32)
    write(view, range(200), np.repeat(query, 200, axis=0))
    watch = watched(view, query, 100, hits=[f"id{n}" for n in range(50, 150)])
    assert agreement(watch)[0] == {k: Agreement(k, k) for k in CUTS}


def test_what_a_search_should_not_have_found_does_not_count():
    view, query = View("c", "e", DIM, 1_000), np.eye(1, DIM, dtype=np.float32)
    write(view, range(30), np.repeat(query, 30, axis=0))
    write(view, [0, 2], np.zeros((2, DIM), np.float32))
    hits = ["id0", "id1", "id4", "id2", "unknown", "id6"]  # dead, odd, right, dead, -, right
    watch = watched(view, query, 100, EVEN, hits)
    assert agreement(watch)[0] == {1: Agreement(0, 1), 10: Agreement(2, 10), 100: Agreement(2, 13)}


def test_fewer_candidates_than_k_are_all_that_is_wanted():
    view, query = View("c", "e", DIM, 1_000), np.eye(1, DIM, dtype=np.float32)
    write(view, range(3), random_vectors(np.random.default_rng(0), 3))
    found, _ = agreement(watched(view, query, 100))
    assert found == {1: Agreement(1, 1), 10: Agreement(3, 3), 100: Agreement(3, 3)}


def test_a_delta_that_has_no_row_yet_is_no_trouble():
    view, query = View("c", "e", DIM, 4), np.eye(1, DIM, dtype=np.float32)
    write(view, range(4), random_vectors(np.random.default_rng(0), 4))
    partition = view.partitions[Modality.TEXT]
    partition.blocks = (*partition.blocks, Delta(DIM, 4))  # as it is for a moment
    found, _ = agreement(watched(view, query, 100, hits=["id0", "unknown"]))
    assert found[10] == Agreement(1, 4)
