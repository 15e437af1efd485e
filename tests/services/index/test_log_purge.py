"""What the log forgets, and how it says so, on both engines."""

import pytest
import sqlalchemy as sa

from mmesh.errors import CollectionNotFound
from services.index.log import purge
from services.index.log.tables import candidates, dropped, requests


def count_of(writer, table):
    with writer.log._database.statement() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table))


def set_ages(writer, table, column, seconds):
    with writer.log._database.write() as connection:
        connection.execute(table.update().values({column: table.c[column] - seconds}))


def test_old_deletions_go_and_the_collection_says_how_far(writer):
    writer.put("a", "b", "c")
    writer.delete("b", "a")
    set_ages(writer, candidates, "deleted_s", 100)
    writer.delete("c")
    assert writer.log.purge(1000) == 0
    assert writer.log.collection("c").purged == 0
    assert writer.log.purge(50) == 2
    head = writer.log.collection("c")
    assert (head.purged, head.seq) == (5, 6)
    rows, through = writer.after()
    assert (rows.ids, rows.seqs.tolist(), through) == (("c",), [6], 6)
    writer.put("a", "b")
    assert writer.ids() == ["a", "b"]
    assert sum(writer.log.collection("c").counts.values()) == 2


def test_many_deletions_go_in_several_transactions(writer, monkeypatch):
    monkeypatch.setattr(purge, "SOME", 3)
    writer.put(*(f"id{n}" for n in range(10)))
    writer.delete(*(f"id{n}" for n in range(8)))
    assert writer.log.purge(-1) == 8
    assert writer.log.collection("c").purged == 18
    assert count_of(writer, candidates) == 2


def test_a_view_that_may_miss_a_deletion_is_told_to_begin_anew(writer):
    writer.put("a", "b", "c")
    epoch = writer.log.collection("c").epoch
    writer.delete("a")
    writer.log.purge(-1)
    read = (range(256), 10, 2)
    rows, through = writer.log.read_after("c", epoch, 3, *read)
    assert (len(rows), through) == (0, 4)
    with pytest.raises(CollectionNotFound):
        writer.log.read_after("c", epoch, 3, *read, purged=0)
    for seq, purged in ((4, 0), (3, 4), (0, 4)):
        writer.log.read_after("c", epoch, seq, *read, purged=purged)


def test_answers_are_remembered_for_days(writer):
    first = writer.put("a", request_id="once")
    set_ages(writer, requests, "time_s", purge.REMEMBERED_S - 60)
    writer.log.purge(0)
    assert writer.put("a", request_id="once") == first
    set_ages(writer, requests, "time_s", 120)
    writer.log.purge(0)
    assert writer.put("a", request_id="once") != first


def test_rows_of_deleted_collections_are_removed(writer, monkeypatch):
    monkeypatch.setattr(purge, "SOME", 2)
    writer.create("d")
    for name in "cd":
        writer.put("a", "b", "e", collection=name, request_id="once")
    writer.log.delete_collection("c")
    assert count_of(writer, candidates) == 6
    assert writer.log.purge(0) == 0
    assert [count_of(writer, table) for table in (candidates, requests, dropped)] == [3, 1, 0]
    assert writer.ids("d") == ["a", "b", "e"]
