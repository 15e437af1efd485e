"""Packed strings and ids against lists and dicts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.errors import DataLoss
from services.index.segments.ids import IdTable, hash_of, hashes_of
from services.index.segments.strings import Strings, concatenate
from services.index.slots import slot_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # NULs, too


@given(st.lists(TEXTS, max_size=40), st.data())
def test_packed_strings_are_what_was_packed(texts, data):
    packed = Strings.pack(texts)
    assert list(packed) == texts
    places = st.lists(st.sampled_from(range(len(texts)))) if texts else st.just([])
    rows = np.array(data.draw(places), np.int64)
    assert packed.take(rows) == [texts[row] for row in rows]
    assert list(packed.chosen(rows)) == [texts[row] for row in rows]


@given(st.lists(st.lists(TEXTS, max_size=5), max_size=5))
def test_concatenated_strings_are_in_order(parts):
    assert list(concatenate([Strings.pack(part) for part in parts])) == [
        text for part in parts for text in part
    ]


@pytest.mark.parametrize("offsets", [[], [0], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(DataLoss):
        Strings(np.frombuffer(b"abc", np.uint8), np.array(offsets, np.int64))


@given(st.lists(TEXTS, max_size=40), st.lists(TEXTS, max_size=20))
def test_every_id_is_found_in_its_last_row(ids, others):
    table = IdTable.of(Strings.pack(ids), hashes_of(ids))
    expected = {candidate_id: row for row, candidate_id in enumerate(ids)}
    asked = [*others, *ids]
    found = table.find(hashes_of(asked), asked).tolist()
    assert found == [expected.get(candidate_id, -1) for candidate_id in asked]
    assert table.hashes().tolist() == [hash_of(candidate_id) for candidate_id in ids]


@given(st.dictionaries(TEXTS, st.integers(0, 3), max_size=30), TEXTS, st.integers(0, 3))
def test_ids_of_one_hash_are_told_apart(hash_by_id, other, hash_of_other):
    ids = list(hash_by_id)
    table = IdTable.of(Strings.pack(ids), np.array(list(hash_by_id.values()), np.uint64))
    hashes = np.array([*hash_by_id.values(), hash_by_id.get(other, hash_of_other)], np.uint64)
    expected = [*range(len(ids)), ids.index(other) if other in ids else -1]
    assert table.find(hashes, [*ids, other]).tolist() == expected


def test_the_low_byte_of_a_hash_is_the_slot():
    assert all(hash_of(f"id {n}") % 256 == slot_of(f"id {n}") for n in range(100))
