"""The view against an oracle: a plain dict, searched with a plain matrix product."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.filters import Compare, Operator
from services.index.build.worker import build
from services.index.log.rows import Rows, attributes_to_json
from services.index.segments.segment import Segment
from services.index.slots import SLOTS, slot_of, slots_of
from services.index.view.view import View, living_rows

DIM = 8
TOPICS = ["cats", "dogs", "birds"]


class Writer:
    """Applies writes to a view and to a dict."""

    def __init__(self, seed, delta_rows=16):
        self.random = np.random.default_rng(seed)
        self.view = View("c", "e", DIM, delta_rows)
        self.alive = {}
        self.seq = 0

    def write(self, numbers, deleted=()):
        """Write candidates by number, all in one batch; those in `deleted` are deleted."""
        numbers = list(dict.fromkeys(numbers))
        vectors = self.random.normal(size=(len(numbers), DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        modalities = [list(Modality)[int(m)] for m in self.random.integers(3, size=len(numbers))]
        attributes = [
            {"topic": TOPICS[int(self.random.integers(3))], "year": int(self.random.integers(10))}
            for _ in numbers
        ]
        gone = np.array([n in deleted for n in numbers], np.bool_)
        vectors[gone] = 0
        ids = [f"id{n}" for n in numbers]
        seqs = np.arange(self.seq + 1, self.seq + 1 + len(numbers))
        texts = ["" if g else attributes_to_json(a) for a, g in zip(attributes, gone, strict=True)]
        self.seq += len(numbers)
        self.view.apply(Rows(ids, modalities, texts, seqs, gone, vectors), self.seq)
        for n, candidate_id in enumerate(ids):
            self.alive.pop(candidate_id, None)
            if not gone[n]:
                self.alive[candidate_id] = (vectors[n], modalities[n], attributes[n])

    def expected(self, query, modality, limit, holds):
        scored = [
            (-float(vector @ query), candidate_id)
            for candidate_id, (vector, own, attributes) in self.alive.items()
            if own is modality and holds(attributes)
        ]
        return [candidate_id for _, candidate_id in sorted(scored)[:limit]]

    def check(self):
        query = self.random.normal(size=(2, DIM)).astype(np.float32)
        for condition, holds in (
            (None, lambda a: True),
            (Compare("topic", Operator.EQUAL, "cats"), lambda a: a["topic"] == "cats"),
            (Compare("year", Operator.LESS, 2), lambda a: a["year"] < 2),
        ):
            lists = self.view.search(query, list(Modality), 7, condition)
            for row, of_query in enumerate(lists):
                for modality, found in zip(Modality, of_query, strict=True):
                    assert list(found.ids) == self.expected(query[row], modality, 7, holds)
                    assert len(found.scores) == len(found.attributes) == len(found.ids)
        assert sum(self.view.counts().values()) == len(self.alive)


WRITES = st.lists(
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=20), max_size=20
)


@given(st.integers(0, 2**32 - 1), WRITES)
def test_a_view_finds_what_a_dict_finds_after_any_writes(seed, batches):
    writer = Writer(seed)
    for batch in batches:
        gone = {n for n, deleted in batch if deleted and f"id{n}" in writer.alive}
        writer.write([n for n, _ in batch], gone)
    assert writer.view.token == f"e:{writer.seq}"
    writer.check()


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_die_while_a_segment_is_built_are_dead_in_it(seed, tmp_path):
    writer = Writer(seed)
    writer.write(range(60))
    partition = writer.view.partitions[Modality.TEXT]
    partition.seal_delta()
    sources = list(partition.full_deltas)
    kept = [living_rows(source) for source in sources]
    inputs = []
    for number, source in enumerate(sources):
        folder = tmp_path / f"delta-{number}"
        folder.mkdir()
        source.save(folder)
        inputs.append({"folder": str(folder)})
    writer.write(range(0, 60, 2), deleted=range(0, 60, 4))  # meanwhile
    writer.check()
    build({"inputs": inputs, "output": str(tmp_path / "new")})
    new = Segment.open(tmp_path / "new")
    partition.replace(sources, kept, new)
    assert partition.segments == (new,)
    assert new.dead > 0
    writer.check()
    writer.write(range(60), deleted=range(30))
    writer.check()


QUERY = np.ones((1, DIM), np.float32)


def ids_of(lists):
    return sorted(candidate_id for found in lists[0] for candidate_id in found.ids)


def test_a_search_beside_a_change_waits_for_its_end_and_one_that_may_not_wait_says_so():
    writer = Writer(1)
    writer.write(range(20))
    view, partition = writer.view, writer.view.partitions[Modality.TEXT]
    begun, go = threading.Event(), threading.Event()
    append = partition.append

    def held_append(*arguments):
        append(*arguments)
        begun.set()
        assert go.wait(10)

    for one in view.partitions.values():
        one.append = held_append if one is partition else one.append
    with ThreadPoolExecutor(2) as pool:
        change = pool.submit(writer.write, range(20))
        assert begun.wait(10)
        assert view.try_search(QUERY, list(Modality), 50, None) is None
        waiting = pool.submit(view.search, QUERY, list(Modality), 50, None)
        with pytest.raises(TimeoutError):
            waiting.result(0.02)
        go.set()
        change.result(10)
        assert ids_of(waiting.result(10)) == sorted(writer.alive)
    assert ids_of(view.try_search(QUERY, list(Modality), 50, None)) == sorted(writer.alive)


def test_a_change_that_fails_keeps_no_search_waiting():
    writer = Writer(1)
    writer.write(range(20))
    with pytest.raises(MemoryError):
        fail_to_replace(writer.view)
    assert writer.view.try_search(QUERY, list(Modality), 50, None) is not None


def fail_to_replace(view):
    def fail(*_):
        raise MemoryError

    for partition in view.partitions.values():
        partition.append = fail
    rows = Rows(["id0"], [Modality.TEXT], [""], np.array([99]), np.zeros(1, np.bool_), QUERY)
    view.apply(rows, 99)


@pytest.mark.parametrize("shard_count", [1, 2, 3, 7, 100, 256])
def test_every_slot_belongs_to_one_shard(shard_count):
    owners = [
        [s for s in range(shard_count) if slot in slots_of(s, shard_count)] for slot in range(SLOTS)
    ]
    assert owners == [[slot * shard_count // SLOTS] for slot in range(SLOTS)]


def test_slots_are_spread_evenly():
    counts = np.bincount([slot_of(f"candidate {n}") for n in range(20_000)], minlength=SLOTS)
    assert counts.min() > 40
    assert counts.max() < 130
