import sqlite3
import threading

import pytest

from mmesh.content import Modality
from mmesh.errors import CollectionExists, CollectionNotFound, InvalidField
from services.index.log import Log
from services.index.rows import NewCandidate
from services.index.slots import SLOTS, slot_of

ALL = range(SLOTS)


def new(candidate_id, modality=Modality.TEXT):
    return NewCandidate(
        candidate_id, slot_of(candidate_id), modality, "", '[{"text": "x"}]', b"\0" * 4
    )


def same_types(types):
    return types


@pytest.fixture
def log(tmp_path):
    log = Log(f"sqlite:///{tmp_path / 'log.db'}")
    log.create_collection("c", 1, "model")
    yield log
    log.close()


def rows_after(log, seq, slots=ALL, limit=1000):
    return log.read_after("c", log.collection("c").epoch, seq, slots, limit)


def test_sequences_have_no_gaps_and_follow_the_order_of_writes(log):
    log.upsert("c", [new("a"), new("b")], same_types)
    log.delete("c", ["a", "unknown"])
    log.upsert("c", [new("c")], same_types)
    rows, through = rows_after(log, 0)
    written = [(r.id, r.seq, r.deleted) for r in rows]
    assert written == [("b", 2, False), ("a", 3, True), ("c", 4, False)]
    assert through == 4


def test_many_writers_leave_no_gap(tmp_path, log):
    def write(name):
        own = Log(f"sqlite:///{tmp_path / 'log.db'}")
        for number in range(20):
            own.upsert("c", [new(f"{name}-{number}-{i}") for i in range(3)], same_types)
        own.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows, through = rows_after(log, 0)
    assert [r.seq for r in rows] == list(range(1, 241))
    assert through == 240


def test_a_repeated_request_is_answered_again_and_written_once(log):
    first = log.upsert("c", [new("a")], same_types, "request-1")
    log.upsert("c", [new("a")], same_types)
    assert log.upsert("c", [new("a")], same_types, "request-1") == first
    assert log.collection("c").seq == 2
    assert log.delete("c", ["a"], "request-2") == log.delete("c", ["a"], "request-2")


def test_a_write_that_fails_leaves_no_trace(log):
    def refuse(types):
        raise InvalidField("candidates[0]", "does not fit")

    with pytest.raises(InvalidField):
        log.upsert("c", [new("a")], refuse, "request-1")
    assert log.collection("c").seq == 0
    log.upsert("c", [new("a")], same_types, "request-1")
    assert log.collection("c").seq == 1


def test_reading_by_slots_reaches_the_head_even_without_rows(log):
    log.upsert("c", [new(f"id{n}") for n in range(100)], same_types)
    left, right = range(100), range(100, 256)
    rows, through = rows_after(log, 0, left)
    others, _ = rows_after(log, 0, right)
    assert through == 100
    assert {r.id for r in rows} | {r.id for r in others} == {f"id{n}" for n in range(100)}
    assert all(r.slot in left for r in rows)


def test_a_limited_read_says_how_far_it_reaches(log):
    log.upsert("c", [new(f"id{n}") for n in range(10)], same_types)
    rows, through = rows_after(log, 0, limit=4)
    assert [r.seq for r in rows] == [1, 2, 3, 4]
    assert through == 4


def test_creating_twice_is_harmless_and_creating_otherwise_is_refused(log):
    assert log.create_collection("c", 1, "model") == log.collection("c")
    with pytest.raises(CollectionExists):
        log.create_collection("c", 2, "model")


def test_a_deleted_collection_is_gone_and_a_new_one_has_another_epoch(log):
    before = log.collection("c")
    log.upsert("c", [new("a"), new("b")], same_types)
    assert log.delete_collection("c") == 2
    with pytest.raises(CollectionNotFound):
        log.collection("c")
    assert log.create_collection("c", 1, "model").epoch != before.epoch
    with pytest.raises(CollectionNotFound):
        log.read_after("c", before.epoch, 0, ALL, 10)


def test_counts_and_pages_leave_out_what_was_deleted(log):
    log.upsert("c", [new("a"), new("b", Modality.IMAGE), new("c")], same_types)
    log.delete("c", ["a"])
    assert log.counts(log.collection("c"))[Modality.TEXT] == 1
    assert [i for i, *_ in log.page("c", "", 10)] == ["b", "c"]
    assert [i for i, *_ in log.page("c", "b", 10)] == ["c"]
    assert [i for i, *_ in log.get("c", ["a", "b"])] == ["b"]


def test_writes_are_flushed_to_the_disk_before_they_are_acknowledged(tmp_path, log):
    log.upsert("c", [new("a")], same_types)
    connection = log._engine.raw_connection()
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.close()
    other = sqlite3.connect(tmp_path / "log.db")
    assert other.execute("SELECT count(*) FROM candidates").fetchone() == (1,)
    other.close()
