"""The journal of ingests: what is stored, what came again, what is gone."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest

from mmesh.cli.files.journal import Journal, Seen
from mmesh.cli.files.sources.items import Item, stamp_of
from mmesh.collections import Collection


def item(name, version=1, source="s"):
    return Item(name, stamp_of(version), lambda: None, source)


@pytest.fixture
def journal(tmp_path):
    """Open the journal for a run."""
    return lambda created="1", **how: Journal(tmp_path / "j.sqlite", created, **how)


def stored(journal, *items):
    """Look at items and store those that are due; return what was known of them."""
    seen = []
    for one in items:
        seen.append(journal.look(one))
        if seen[-1] is not Seen.SAME:
            journal.store(one, one.stamp)
    return seen


def test_only_what_is_new_or_changed_is_due(journal):
    with journal() as first:
        assert stored(first, item("a"), item("b")) == [Seen.NEW, Seen.NEW]
    with journal() as second:
        again = stored(second, item("a"), item("b", 2), item("c"))
        assert again == [Seen.SAME, Seen.CHANGED, Seen.NEW]
        assert second.stored == 3


def test_what_was_seen_and_not_stored_is_due_again(journal):
    with journal() as first:
        assert first.look(item("a")) is Seen.NEW
    with journal() as second:
        assert second.look(item("a")) is Seen.NEW
        assert second.gone(["s"]) == []


def test_an_item_that_reads_the_same_is_not_due(journal):
    with journal() as first:
        first.look(item("a"))
        first.store(item("a"), b"digest")
    with journal() as second:
        touched = item("a", 2)
        assert second.look(touched) is Seen.CHANGED
        assert second.is_stored_as(touched, b"digest")
        assert not second.is_stored_as(touched, b"other")
    with journal() as third:
        assert third.look(touched) is Seen.SAME


def test_what_no_run_of_its_source_sees_is_gone(journal):
    with journal() as first:
        stored(first, item("a"), item("b"), item("c", source="other"))
        assert first.gone(["s", "other"]) == []
    with journal() as second:
        stored(second, item("a"))
        assert second.gone(["s"]) == ["b"]
        assert second.gone(["s", "other"]) == ["b", "c"]
        second.forget(["b"])
        assert second.gone(["s"]) == []


def test_two_runs_at_once_take_nothing_of_each_other_for_gone(journal):
    both = [item("a"), item("b")]
    with journal() as first:
        stored(first, *both)
    with journal() as slow, journal() as quick:
        slow.look(both[0])
        stored(quick, *both)
        assert quick.gone(["s"]) == []
        slow.look(both[1])
        assert slow.gone(["s"]) == []
        assert quick.gone(["s"]) == []


def test_two_runs_at_once_may_begin_with_other_sources(journal):
    with journal() as slow, journal() as quick:
        stored(slow, item("a", source="A"))
        stored(quick, item("b", source="B"))
        assert stored(slow, item("b2", source="B"), item("c", source="C")) == [Seen.NEW, Seen.NEW]
    with journal() as later:
        stored(later, item("b", source="B"))
        assert later.gone(["A", "C"]) == ["a", "c"]
        assert later.gone(["B"]) == ["b2"]


def test_runs_that_begin_at_one_moment_are_not_one(journal):
    together = threading.Barrier(8)

    def begin(_):
        together.wait()
        return journal()

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(begin, range(8)))
    for run in runs:
        with run:
            assert run.look(item("a")) is Seen.NEW


def test_an_item_that_cannot_be_read_is_not_gone(journal):
    with journal() as first:
        stored(first, item("a"))
    with journal() as second:
        second.see("a", "s")
        assert second.gone(["s"]) == []
    with journal() as third:
        assert third.look(item("a")) is Seen.SAME


def test_an_item_that_moves_to_another_source_is_not_gone(journal):
    with journal() as first:
        stored(first, item("a"))
    with journal() as second:
        assert second.look(item("a", 1, "other")) is Seen.MOVED
        assert second.gone(["s"]) == []
    with journal() as third:
        assert stored(third, item("a", 1, "other")) == [Seen.CHANGED]
    with journal() as fourth:
        assert stored(fourth, item("a", 1, "other")) == [Seen.SAME]


def test_ids_that_come_again_are_always_due(journal):
    twice = [item("a", 1), item("a", 2)]
    with journal() as first:
        assert stored(first, *twice) == [Seen.NEW, Seen.AGAIN]
    with journal() as second:
        assert stored(second, *twice) == [Seen.CHANGED, Seen.AGAIN]
    with journal() as third:  # the last one is gone, so the first must be stored
        assert stored(third, twice[0]) == [Seen.CHANGED]
    with journal() as fourth:
        assert stored(fourth, twice[0]) == [Seen.SAME]


def test_another_collection_of_the_name_begins_anew(journal):
    with journal() as first:
        stored(first, item("a"))
    with journal("2") as second:
        assert second.stored == 0


def test_a_dry_run_changes_nothing(journal):
    with journal() as first:
        stored(first, item("a"), item("b"))
    with journal(dry=True) as dry:
        assert stored(dry, item("a", 2)) == [Seen.CHANGED]
        assert dry.gone(["s"]) == ["b"]
    with journal() as third:
        assert stored(third, item("a"), item("b")) == [Seen.SAME, Seen.SAME]


def test_a_dry_run_keeps_nobody_waiting(journal, tmp_path):
    with journal() as first:
        stored(first, item("a"))
    with journal(dry=True) as dry, journal() as run:
        dry.look(item("b"))
        assert dry.stored == 1
        with closing(sqlite3.connect(tmp_path / "j.sqlite", timeout=0)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert dry.look(item("a")) is Seen.SAME
        stored(run, item("c"))
        assert dry.stored == 1


def test_a_run_that_lists_the_collection_keeps_nobody_waiting(journal, tmp_path):
    def listed():
        yield "a"
        with closing(sqlite3.connect(tmp_path / "j.sqlite", timeout=0)) as other:
            other.execute("BEGIN EXCLUSIVE")
        yield "b"

    with journal() as run:
        stored(run, item("a"), item("b"), item("c"))
        assert run.keep_only(listed()) == 1


def test_a_dry_run_leaves_a_damaged_journal_and_makes_none(journal, tmp_path):
    with journal(dry=True) as dry:
        assert dry.look(item("a")) is Seen.NEW
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "j.sqlite").write_bytes(b"no database" * 1000)
    with journal(dry=True) as dry:
        assert dry.look(item("a")) is Seen.NEW
    assert (tmp_path / "j.sqlite").stat().st_size == 11000


def test_what_is_not_in_the_collection_any_more_is_due(journal):
    with journal() as first:
        stored(first, item("a"), item("b"))
        first.finish("token")
    with journal() as second:
        assert second.agrees_with("token")
        assert not second.agrees_with("later")
        assert second.keep_only(["a", "x"]) == 1
        assert stored(second, item("a"), item("b")) == [Seen.SAME, Seen.NEW]


def test_what_is_distrusted_is_stored_and_due(journal):
    with journal() as first:
        stored(first, item("a"), item("b"))
        first.distrust()
    with journal() as second:
        assert second.stored == 2
        assert second.look(item("a")) is Seen.CHANGED
        assert not second.is_stored_as(item("a"), item("a").stamp)
        assert second.gone(["s"]) == ["b"]


def test_the_newest_write_is_known_after_a_run_that_did_not_end(journal):
    with journal() as first:
        first.acknowledge("epoch:3")
        stored(first, item("a"))
        first.finish("epoch:3")
    with journal() as second:
        assert second.agrees_with("epoch:3")
        second.acknowledge("epoch:5")
        stored(second, item("b"))
    with journal() as third:
        assert third.newest == "epoch:5"
        assert not third.agrees_with("epoch:3")  # a log of that state has no b
        third.acknowledge("epoch:4")  # of a run that began before
        assert third.newest == "epoch:5"


def test_a_damaged_journal_begins_anew(journal, tmp_path):
    with journal() as first:
        stored(first, item("a"))
    (tmp_path / "j.sqlite").write_bytes(b"no database" * 1000)
    with journal() as second:
        assert second.look(item("a")) is Seen.NEW


@pytest.fixture
def kept_in(tmp_path, monkeypatch):
    """Open the journal of a collection, whose epoch and time of creation are these."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def open_(epoch, *, name="c", second=0, address="here:1", **how):
        created = datetime(2026, 1, 2, 3, 4, second, tzinfo=UTC)
        made = Collection(name, 8, "model", {}, 1, created, f"{epoch}.{'0' * 12}:7")
        return Journal.of(made, address, **how)

    return open_


def test_two_meshes_never_share_a_journal(kept_in):
    with kept_in("one") as first:
        stored(first, item("a"))
    for other in ({"epoch": "two"}, {"epoch": "one", "second": 1}):
        with kept_in(**other) as second:
            assert second.stored == 0
    with kept_in("one", name="renamed", address="elsewhere:2") as again:
        assert again.stored == 1


@pytest.mark.parametrize(
    ("token", "of", "is_taken_over"),
    [
        ("one:3", "here:1", True),
        ("one:3", "elsewhere:2", True),
        ("two:3", "here:1", False),
        ("", "here:1", True),
        ("", "elsewhere:2", False),  # it may be of another collection of that moment
    ],
)
def test_a_journal_kept_by_address_is_taken_over_by_its_own_collection(
    kept_in, tmp_path, token, of, is_taken_over
):
    folder = tmp_path / "mmesh" / "ingests"
    folder.mkdir(parents=True)
    key = hashlib.sha256(json.dumps([of, "c"]).encode()).hexdigest()[:24]
    before = folder / f"{key}.sqlite"
    with Journal(before, "2026-01-02T03:04:00+00:00") as older:
        stored(older, item("a"), item("b"))
        older.acknowledge(token)
    (folder / "damaged.sqlite").write_bytes(b"no database" * 1000)
    with kept_in("one", dry=True) as dry:
        assert dry.stored == (2 if is_taken_over else 0)
    assert before.exists()
    with kept_in("one") as taken:
        assert taken.stored == (2 if is_taken_over else 0)
        assert taken.newest == (token if is_taken_over else "")
    assert before.exists() is not is_taken_over
    with kept_in("one") as later:
        assert later.stored == (2 if is_taken_over else 0)
