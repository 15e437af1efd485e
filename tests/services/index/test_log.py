"""What every log promises to one caller, on both engines."""

import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from mmesh.content import Modality
from mmesh.errors import (
    CollectionFull,
    CollectionNotFound,
    DimMismatch,
    InvalidField,
    ModelMismatch,
)
from services.index.log.ledger import Delete, DeleteUnchanged, Upsert, Written
from services.index.log.rows import NewCandidate
from services.index.slots import slot_of


def columns(rows):
    return list(zip(rows.ids, rows.seqs.tolist(), rows.deleted.tolist(), strict=True))


def test_sequences_have_no_gaps_and_follow_the_order_of_writes(writer):
    writer.put("a", "b")
    writer.delete("a", "unknown")
    writer.put("c")
    rows, through = writer.after()
    assert columns(rows) == [("b", 2, False), ("a", 3, True), ("c", 4, False)]
    assert through == 4


def test_a_row_comes_back_as_it_was_written(writer, row, upsert):
    new = row("ä\u4e2d", Modality.IMAGE_TEXT, 0.5, '{"year": 1999}')
    token = writer.write(upsert([new])).token
    rows, _ = writer.after()
    assert (rows.ids[0], rows.modalities[0]) == (new.id, new.modality)
    assert rows.attributes[0] == new.attributes
    np.testing.assert_array_equal(rows.vectors, [[0.5, 1.0]])
    assert rows.vectors.dtype == np.float32
    [stored] = writer.log.get("c", [new.id], vectors=True)
    assert (stored.id, stored.parts, stored.attributes) == (new.id, new.parts, new.attributes)
    assert (stored.seq, stored.vector) == (1, new.vector)
    assert token == writer.log.collection("c").token


def test_a_deleted_row_has_no_content(writer):
    writer.put("a")
    writer.delete("a")
    rows, _ = writer.after()
    assert (rows.attributes[0], rows.deleted.tolist()) == ("", [True])
    np.testing.assert_array_equal(rows.vectors, [[0, 0]])


def test_a_repeated_request_is_answered_again_and_written_once(writer):
    first = writer.put("a", request_id="request-1")
    writer.put("a")
    assert writer.put("a", request_id="request-1") == first == Written(first.token, 1)
    assert writer.log.collection("c").seq == 2
    gone = writer.delete("a", "b", request_id="request-2")
    assert gone.count == 1
    assert writer.delete("a", "b", request_id="request-2") == gone


def test_the_same_request_id_in_another_collection_is_another_request(writer):
    writer.create("d")
    writer.put("a", request_id="one")
    writer.put("a", collection="d", request_id="one")
    assert writer.ids("d") == ["a"]


def test_a_refused_write_leaves_no_trace(writer, row):
    def refuse(types):
        raise InvalidField("candidates[0]", "does not fit")

    with pytest.raises(InvalidField):
        writer.write(Upsert("c", [row("a")], refuse, "request-1"))
    assert writer.log.collection("c").seq == 0
    writer.put("a", request_id="request-1")
    assert writer.log.collection("c").seq == 1


def test_types_of_attributes_are_kept_and_given_to_the_next_write(writer, row):
    seen = []

    for name in "ab":
        found = [row(name, attributes='{"year": 1}')]
        writer.write(Upsert("c", found, lambda types: seen.append(dict(types))))
    assert seen == [{}, {"year": "integer"}]
    assert writer.log.collection("c").attribute_types == {"year": "integer"}


def test_reading_by_slots_reaches_the_head_even_without_rows(writer):
    ids = [f"id{n}" for n in range(100)]
    writer.put(*ids)
    left, right = range(100), range(100, 256)
    rows, through = writer.after(slots=left)
    others, _ = writer.after(slots=right)
    assert through == 100
    assert sorted([*rows.ids, *others.ids]) == sorted(ids)
    assert all(slot_of(candidate_id) in left for candidate_id in rows.ids)
    assert writer.after(100)[0].vectors.shape == (0, 2)


def test_a_limited_read_says_how_far_it_reaches(writer):
    writer.put(*(f"id{n}" for n in range(10)))
    rows, through = writer.after(limit=4)
    assert rows.seqs.tolist() == [1, 2, 3, 4]
    assert through == 4
    rows, through = writer.after(through, limit=100)
    assert (rows.seqs.tolist(), through) == (list(range(5, 11)), 10)


def test_counts_are_those_of_living_candidates(writer, row, upsert):
    writer.write(upsert([row("a"), row("b", Modality.IMAGE), row("c"), row("c")]))
    writer.write(upsert([row("a", Modality.IMAGE_TEXT)]))
    writer.delete("c", "c", "unknown")
    counts = writer.log.collection("c").counts
    assert counts == {Modality.TEXT: 0, Modality.IMAGE: 1, Modality.IMAGE_TEXT: 1}
    writer.put("c")
    assert writer.log.collection("c").counts[Modality.TEXT] == 1


def test_pages_go_by_the_bytes_of_ids_and_leave_out_what_was_deleted(writer):
    ids = ["Zebra", "a-b", "a_b", "ab", "ä", "\u4e2d"]
    writer.put(*reversed(ids))
    assert writer.ids() == sorted(ids)
    writer.delete("ab")
    rows, is_last = writer.log.page("c", "a-b", 2)
    assert ([row.id for row in rows], is_last) == (["a_b", "ä"], False)
    rows, is_last = writer.log.page("c", "a_b", 2)
    assert ([row.id for row in rows], is_last) == (["ä", "\u4e2d"], True)
    assert writer.log.page("c", "\u4e2d", 2) == ([], True)
    assert [row.vector for row in writer.log.page("c", "", 1).rows] == [b""]
    assert len(writer.log.page("c", "", 1, vectors=True).rows[0].vector) == 8
    assert [row.id for row in writer.log.get("c", ["ab", "ä", "unknown", "nul\0"])] == ["ä"]


def test_pages_hold_as_many_bytes_as_are_asked_for_and_one_candidate_at_least(writer, upsert, row):
    texts = [replace(row(f"id{n}"), parts=json.dumps([{"text": "\u00e4" * 500}])) for n in range(5)]
    writer.write(upsert(texts))
    sizes = writer.log.sizes("c", ["id0", "id1", "unknown", "nul\0"])
    one = len(texts[0].parts.encode())
    assert sizes == {"id0": one, "id1": one}
    for most, vectors, fit in [(1, False, 1), (2 * one, False, 2), (2 * one, True, 1)]:
        rows, is_last = writer.log.page("c", "id0", 9, most, vectors=vectors)
        assert ([one.id for one in rows], is_last) == (["id1", "id2"][:fit], False)
    rows, is_last = writer.log.page("c", "", 9, 1, parts=False)
    assert ([one.parts for one in rows], is_last) == ([""] * 5, True)


def test_unchanged_candidates_are_deleted_and_changed_ones_stay(writer):
    writer.put("a", "b", "c")
    seqs = {row.id: row.seq for row in writer.log.page("c", "", 10).rows}
    writer.put("b")
    written = writer.write(DeleteUnchanged("c", {**seqs, "unknown": 9}, "once"))
    assert written.count == 2
    assert writer.ids() == ["b"]
    assert writer.write(DeleteUnchanged("c", {**seqs, "unknown": 9}, "once")) == written


def test_a_full_collection_takes_replacements_and_says_what_to_do(writer):
    writer.create("small", most=2)
    writer.put("a", "b", collection="small")
    writer.put("a", "b", collection="small")
    with pytest.raises(CollectionFull, match=r"holds 2 candidates of at most 2.*raise") as full:
        writer.put("b", "c", collection="small", request_id="again")
    assert full.value.metadata["limit"] == "2"
    writer.delete("a", collection="small")
    writer.put("b", "c", collection="small", request_id="again")
    assert writer.ids("small") == ["b", "c"]


def test_vectors_that_are_not_the_collections_are_refused(writer, row):
    wide = NewCandidate("a", 0, Modality.TEXT, "", "[]", bytes(12))
    with pytest.raises(DimMismatch, match="dim 2; that of 'a' is of dim 3"):
        writer.write(Upsert("c", [wide], dict))
    with pytest.raises(ModelMismatch, match="'model'; these are of 'other'"):
        writer.write(Upsert("c", [row("a")], dict, model_fingerprint="other"))
    writer.write(Upsert("c", [row("a")], dict, model_fingerprint="model"))


def test_what_no_text_column_takes_is_refused_or_not_found(writer, row):
    with pytest.raises(InvalidField, match="request_id"):
        writer.put("a", request_id="a\0b")
    for call in (lambda: writer.log.collection("a\0"), lambda: writer.put("a", collection="a\0")):
        with pytest.raises(CollectionNotFound):
            call()
    assert writer.delete("a\0").count == 0
    for page in (lambda: writer.log.page("c", "\0", 1), lambda: writer.log.collections("\0", 1)):
        with pytest.raises(InvalidField, match="page_token"):
            page()


def test_writes_to_a_collection_that_is_gone_are_refused(writer):
    epoch = writer.log.collection("c").epoch
    writer.log.delete_collection("c")
    for call in (lambda: writer.put("a"), lambda: writer.write(Delete("c", ["a"]))):
        with pytest.raises(CollectionNotFound):
            call()
    with pytest.raises(CollectionNotFound):
        writer.log.read_after("c", epoch, 0, range(256), 10, 2)


def test_writes_are_flushed_to_the_disk_before_they_are_acknowledged(tmp_path, open_log):
    writer = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    writer.create()
    writer.put("a")
    with writer.log._database.statement() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    other = sqlite3.connect(tmp_path / "log.db")
    assert other.execute("SELECT count(*) FROM candidates").fetchone() == (1,)
    other.close()


def test_the_version_changes_with_every_commit_where_it_is_told(writer, open_log, log_url):
    other = open_log(log_url)
    seen = [writer.log.version()]
    for one in (writer, other, writer):
        assert writer.log.version() == seen[-1]
        one.put("a")
        seen.append(writer.log.version())
    told = [version for version in seen if version is not None]
    assert len(told) == len(set(told))
    assert bool(told) == log_url.startswith("sqlite")


def test_ids_that_a_system_gave_are_kept_byte_by_byte(writer):
    names = [
        "caf\u00e9", "cafe\u0301", "a\u202fb", "\u3000", "\U0001f468\u200d\U0001f469", "a\u00adb",
        "\ue000", "\U000f0001", "\u0378", "\ufffe", "\uffff", "\U0010ffff", "%0A", "'\"\\",
    ]  # fmt: skip
    writer.put(*names)
    assert writer.ids() == sorted(names, key=str.encode)
    assert {one.id for one in writer.log.get("c", names)} == set(names)
    assert writer.delete(*names).count == len(names)
