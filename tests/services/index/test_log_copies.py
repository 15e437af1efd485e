"""Copies of collections: what one held at one moment, read-only, on both engines."""

import json
import threading
from dataclasses import replace
from functools import partial

import pytest
import sqlalchemy as sa

from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from mmesh.errors import (
    CollectionExists,
    CollectionNotFound,
    CollectionReadOnly,
    DeadlineExceeded,
    LogUnavailable,
    Unavailable,
)
from mmesh.values.tokens import Token
from services.index.log import copying, purge
from services.index.log.databases import sqlite
from services.index.log.ledger import Delete, DeleteUnchanged, Fill, Mirrored, Upsert
from services.index.log.tables import candidates, dropped
from services.index.store.garbage import CLOCKS_S


def same_types(types):
    return types


def count_of(writer, table):
    with writer.log._database.statement() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table))


@pytest.fixture
def filled(writer, row):
    """The collection "c" of five candidates, after writes that replaced and deleted some."""
    rows = [row(f"id{n}", list(Modality)[n % 3], n, json.dumps({"n": n})) for n in range(6)]
    writer.write(Upsert("c", rows, lambda types: {"n": "integer"}))
    writer.write(Upsert("c", [row("id1", Modality.TEXT, 9, json.dumps({"n": 9}))], same_types))
    writer.delete("id3")
    return writer


def test_a_copy_is_what_its_source_was(filled):
    log = filled.log
    source, copy = log.collection("c"), log.copy_collection("c", "copy")
    assert copy.epoch != source.epoch
    assert (copy.seq, copy.stamp, copy.purged) == (source.seq, source.stamp, 0)
    for same in ("dim", "model_fingerprint", "counts", "attribute_types"):
        assert getattr(copy, same) == getattr(source, same)
    assert log.attributes(copy.key) == log.attributes(source.key)
    assert log.page("copy", "", 9, vectors=True) == log.page("c", "", 9, vectors=True)
    assert copy.settings == CollectionSettings("Flat", read_only=True)
    assert log.holds(copy, source.head) is True
    rows, through = filled.after(collection="copy")
    kept, _ = filled.after()
    assert (through, rows.commits[-1]) == (source.seq, source.head)
    assert list(rows.ids) == [i for i, gone in zip(kept.ids, kept.deleted, strict=True) if not gone]


def test_what_is_written_while_it_is_copied_is_not_in_it(filled, row, monkeypatch):
    monkeypatch.setattr(copying, "SOME", 2)
    before = filled.log.page("c", "", 99, vectors=True)
    written = iter(range(100))

    def write():
        number = next(written)
        filled.write(Upsert("c", [row(f"id{number}", number=77), row(f"new{number}")], same_types))
        filled.delete(f"id{5 - number}")
        with pytest.raises(CollectionNotFound):
            filled.log.collection("copy")

    copy = filled.log.copy_collection("c", "copy", check=write)
    assert next(written) == 4
    assert filled.log.page("copy", "", 99, vectors=True) == before
    assert sum(copy.counts.values()) == len(before.rows) == 5


def test_no_page_of_a_copy_is_larger_than_it_may_be(filled, row, monkeypatch):
    def long(candidate_id, letters, number=0):
        parts = json.dumps([{"text": "é" * letters}], ensure_ascii=False)
        return replace(row(candidate_id, number=number), parts=parts)

    letters = {"a": 100, "b": 300, "c": 300, "d": 3000, "e": 10, "f": 10, "g": 3000, "h": 3000}
    filled.write(Upsert("c", [long(*one) for one in letters.items()], same_types))
    filled.delete("c", *(f"id{n}" for n in range(6)))
    pages = []

    def put(database, key, rows, known=copying._put):
        pages.append("".join(one.id for one in rows))
        known(database, key, rows)

    monkeypatch.setattr(copying, "SOME_BYTES", 1000)
    monkeypatch.setattr(copying, "SOME", 5)
    monkeypatch.setattr(copying, "_put", put)
    filled.log.copy_collection("c", "copy")
    assert pages == ["ab", "d", "ef", "g", "h", "", ""]  # at last deletions
    assert filled.log.page("copy", "", 99, vectors=True) == filled.log.page(
        "c", "", 99, vectors=True
    )


def test_a_copy_takes_no_writes_until_it_may(filled, row):
    log = filled.log
    copy = log.copy_collection("c", "copy")
    log.create_collection("other", 2, "model", CollectionSettings(mirror="copy"))
    for write in (
        Upsert("copy", [row("a")], same_types),
        Delete("copy", ["id1"]),
        DeleteUnchanged("copy", {"id1": 7}),
        Upsert("other", [row("a")], same_types, mirrored=Mirrored([row("a")], "")),
        Delete("other", ["id1"]),
    ):
        with pytest.raises(CollectionReadOnly, match="'copy'"):
            filled.write(write)
    assert log.collection("copy").token == copy.token
    assert log.collection("other").seq == 0
    log.update_collection("copy", {"read_only": False})
    filled.put("a", collection="copy")
    filled.delete("id1", collection="copy")
    assert log.collection("copy").seq == copy.seq + 2
    assert "id1" in filled.ids()


def test_a_collection_can_be_filled_from_a_mirror_that_is_read_only(filled, row):
    filled.log.copy_collection("c", "copy")
    filled.log.create_collection("new", 2, "other model", CollectionSettings(mirror="copy"))
    rows = [row("id0"), row("unknown")]
    assert filled.write(Fill("new", rows, same_types)).count == 1
    assert filled.ids("new") == ["id0"]


def test_an_empty_collection_and_an_alias_can_be_copied(writer):
    writer.log.set_alias("alias", "c")
    copy = writer.log.copy_collection("alias", "copy")
    assert Token.parse(copy.token) == Token(copy.epoch, 0)
    assert (copy.name, copy.aliases, writer.ids("copy")) == ("copy", (), [])


def test_the_same_request_gets_the_same_copy(filled):
    first = filled.log.copy_collection("c", "copy", "once")
    filled.put("more")
    assert filled.log.copy_collection("c", "copy", "once") == first
    with pytest.raises(CollectionExists):
        filled.log.copy_collection("c", "copy", "twice")
    filled.log.delete_collection("copy")
    with pytest.raises(CollectionNotFound):
        filled.log.copy_collection("c", "copy", "once")


def test_of_two_who_make_the_same_copy_one_does(filled):
    both = threading.Barrier(2)
    made = []

    def copy():
        check = partial(both.wait, 20)
        made.append(filled.log.copy_collection("c", "copy", "once", check=check))

    threads = [threading.Thread(target=copy) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 2
    assert made[0] == made[1]
    assert len(filled.ids("copy")) == 5
    filled.log.purge(1000)
    assert (count_of(filled, candidates), count_of(filled, dropped)) == (6 + 5, 0)


def test_nothing_remains_of_a_copy_that_was_not_completed(filled):
    def stop():
        raise DeadlineExceeded("late")

    with pytest.raises(DeadlineExceeded):
        filled.log.copy_collection("c", "copy", "once", check=stop)
    with pytest.raises(CollectionNotFound):
        filled.log.copy_collection("unknown", "copy")
    assert [row.name for row in filled.log.collections()] == ["c"]
    filled.log.purge(1000)
    assert (count_of(filled, candidates), count_of(filled, dropped)) == (6, 0)
    assert filled.log.copy_collection("c", "copy", "once").seq == 8


def test_a_purge_leaves_a_copy_that_is_worked_on_alone(filled, monkeypatch):
    monkeypatch.setattr(copying, "SOME", 2)
    copy = filled.log.copy_collection("c", "copy", check=lambda: filled.log.purge(1000))
    assert len(filled.ids("copy")) == 5
    filled.log.purge(1000)
    assert filled.log.collection("copy") == copy
    assert count_of(filled, candidates) == 6 + 5


# While it is written, before the last page, and before it appears; all of its rows, and some.
@pytest.mark.parametrize("calls", [1, 3, 4])
@pytest.mark.parametrize("transactions", [1, 9])
def test_a_copy_whose_rows_were_purged_meanwhile_is_no_copy(
    filled, monkeypatch, calls, transactions
):
    monkeypatch.setattr(copying, "SOME", 2)
    monkeypatch.setattr(purge, "SOME", 1)
    call = iter(range(1, 9))

    def remove():
        if next(call) == calls:
            with monkeypatch.context() as late:
                late.setattr(copying, "LEASE_S", -10)
                for _ in range(transactions):
                    purge._remove_rows(filled.log._database)

    with pytest.raises(Unavailable, match="purged"):
        filled.log.copy_collection("c", "copy", check=remove)
    with pytest.raises(CollectionNotFound):
        filled.log.collection("copy")
    filled.log.purge(1000)
    assert (count_of(filled, candidates), count_of(filled, dropped)) == (6, 0)


def test_a_copy_appears_without_a_look_at_its_rows(filled, monkeypatch):
    statements = []

    def publish(connection, *given, known=copying.publish):
        sa.event.listen(connection, "before_cursor_execute", lambda *a: statements.append(a[2]))
        return known(connection, *given)

    monkeypatch.setattr(copying, "publish", publish)
    filled.log.copy_collection("c", "copy")
    assert statements
    assert not [one for one in statements if "candidates" in one]


def test_nothing_remains_of_a_copy_that_cannot_appear(filled, monkeypatch):
    def fail(*_):
        raise LogUnavailable("a statement took too long")

    with pytest.raises(CollectionExists):
        filled.log.copy_collection("c", "d", check=lambda: filled.create("d"))
    monkeypatch.setattr(copying, "publish", fail)
    with pytest.raises(LogUnavailable):
        filled.log.copy_collection("c", "copy")
    filled.log.purge(1000)
    assert (count_of(filled, candidates), count_of(filled, dropped)) == (6, 0)


@pytest.mark.parametrize("calls", [2, 4])  # before its second page, and before it appears
def test_a_copy_that_stood_still_for_too_long_is_no_copy(filled, monkeypatch, calls):
    monkeypatch.setattr(copying, "SOME", 2)
    call = iter(range(1, 9))

    def stand_still():
        if next(call) == calls:
            monkeypatch.setattr(copying, "LEASE_S", -10)

    with pytest.raises(Unavailable):
        filled.log.copy_collection("c", "copy", check=stand_still)
    assert [row.name for row in filled.log.collections()] == ["c"]


def with_picture(row, candidate_id):
    parts = json.dumps([{"image": f"picture of {candidate_id}", "media_type": "image/png"}])
    return replace(row(candidate_id, Modality.IMAGE), parts=parts)


def test_nobody_can_tell_which_pictures_are_named_while_a_copy_is_made(filled, row):
    filled.write(Upsert("c", [with_picture(row, "a")], same_types))

    def look():
        filled.delete("a")
        with pytest.raises(Unavailable, match="copied"):
            list(filled.log.pictures())

    filled.log.copy_collection("c", "copy", check=look)
    assert "picture of a" in set(filled.log.pictures())


def test_those_of_a_copy_that_was_never_completed_are_not_waited_for(filled, monkeypatch):
    monkeypatch.setattr(copying, "_END", sa.select(1))  # the process is killed

    def stop():
        raise DeadlineExceeded("late")

    with pytest.raises(DeadlineExceeded):
        filled.log.copy_collection("c", "copy", check=stop)
    with pytest.raises(Unavailable):
        list(filled.log.pictures())
    monkeypatch.setattr(copying, "LEASE_S", -CLOCKS_S - 1)
    list(filled.log.pictures())


def test_pictures_of_a_copy_that_is_made_while_they_are_listed_are_among_them(
    filled, row, monkeypatch
):
    monkeypatch.setattr(purge, "SOME", 1)
    filled.write(Upsert("c", [with_picture(row, "a"), with_picture(row, "b")], same_types))
    names = filled.log.pictures()
    assert next(names) == "picture of a"
    filled.log.copy_collection("c", "copy")
    filled.delete("b")
    assert "picture of b" in list(names)


def test_the_write_ahead_log_shrinks_after_a_copy(open_log, tmp_path, row, monkeypatch):
    limit = 1 << 20  # of ten times that SQLite makes a checkpoint
    monkeypatch.setattr(sqlite, "WAL_BYTES", limit)
    wal = tmp_path / "log.db-wal"
    writer = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    writer.create()
    parts = json.dumps([{"text": "x" * limit}])
    writer.write(
        Upsert("c", [replace(row(name), parts=parts) for name in "abcdefghij"], same_types)
    )
    writer.log.copy_collection("c", "copy")
    assert wal.stat().st_size > 9 * limit
    for _ in range(3):
        writer.put("short")
    assert wal.stat().st_size <= limit
