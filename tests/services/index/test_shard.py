"""The view against an oracle: a plain dict, searched with a plain matrix product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.filters import AllOf, AnyOf, Compare, In, Not, Operator
from services.index.filters import Columns
from services.index.rows import CandidateRow
from services.index.shard import View
from services.index.slots import SLOTS, slot_of, slots_of

DIM = 8
TOPICS = ["cats", "dogs", "birds"]


def row(number, seq, *, deleted=False, rng):
    vector = rng.normal(size=DIM).astype(np.float32)
    vector /= np.linalg.norm(vector)
    modality = list(Modality)[int(rng.integers(3))]
    attributes = {"topic": TOPICS[int(rng.integers(3))], "year": int(rng.integers(10))}
    return CandidateRow(
        f"id{number}", 0, modality, attributes, seq, deleted, b"" if deleted else vector.tobytes()
    )


def expected(alive, query, modality, limit, holds=lambda attributes: True):
    scored = [
        (-float(np.frombuffer(r.vector, "<f4") @ query), r.id)
        for r in alive.values()
        if r.modality is modality and holds(r.attributes)
    ]
    return [candidate_id for _, candidate_id in sorted(scored)[:limit]]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=300),
)
def test_a_view_finds_what_a_dict_finds_after_any_writes(seed, writes):
    rng = np.random.default_rng(seed)
    view, alive = View("c", "e", DIM, seal_rows=16), {}
    for seq, (number, deleted) in enumerate(writes, start=1):
        new = row(number, seq, deleted=deleted and f"id{number}" in alive, rng=rng)
        view.apply([new], seq)
        alive.pop(new.id, None)
        if not new.deleted:
            alive[new.id] = new
    query = rng.normal(size=(1, DIM)).astype(np.float32)
    for condition, holds in (
        (None, lambda a: True),
        (Compare("topic", Operator.EQUAL, "cats"), lambda a: a["topic"] == "cats"),
        (Compare("year", Operator.LESS, 2), lambda a: a["year"] < 2),
    ):
        (lists,) = view.search(query, list(Modality), 7, condition)
        for modality, found in zip(Modality, lists, strict=True):
            ids = [hit.id for hit in found]
            assert ids == expected(alive, query[0], modality, 7, holds)
    assert sum(view.counts().values()) == len(alive)


ROWS = [
    {"topic": "cats", "year": 1990, "tags": ("a", "b")},
    {"topic": "dogs", "score": 0.5, "shown": True},
    {"year": 1969, "tags": ()},
    {},
]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        (Compare("topic", Operator.EQUAL, "cats"), [0]),
        (Compare("topic", Operator.NOT_EQUAL, "cats"), [1]),
        (Not(Compare("topic", Operator.EQUAL, "cats")), [1, 2, 3]),
        (Compare("year", Operator.GREATER_OR_EQUAL, 1969.0), [0, 2]),
        (Compare("tags", Operator.EQUAL, "b"), [0]),
        (In("tags", ("x", "a")), [0]),
        (In("year", (1969, 1990)), [0, 2]),
        (Compare("shown", Operator.EQUAL, True), [1]),
        (Compare("unknown", Operator.EQUAL, 1), []),
        (AllOf(()), [0, 1, 2, 3]),
        (AnyOf(()), []),
        (AnyOf((Compare("score", Operator.LESS, 1), Compare("year", Operator.LESS, 1980))), [1, 2]),
    ],
)
def test_a_condition_holds_for_the_rows_it_names(condition, rows):
    assert np.flatnonzero(Columns(ROWS).mask(condition)).tolist() == rows


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
