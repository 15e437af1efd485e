"""Collections, their settings and their aliases, on both engines."""

from datetime import UTC, datetime, timedelta

import pytest

from mmesh.collections import CollectionLimits, CollectionSettings
from mmesh.errors import AliasNotFound, CollectionExists, CollectionNotFound, InvalidField
from services.index.log import catalog

SETTINGS = CollectionSettings("Flat", 0.9, CollectionLimits(7, 6, 5, 4, 3))


def test_creating_twice_is_harmless_and_creating_otherwise_is_refused(writer):
    log = writer.log
    assert log.create_collection("c", 2, "model", SETTINGS) == log.collection("c")
    assert log.collection("c").settings == CollectionSettings()
    for dim, model in ((3, "model"), (2, "other")):
        with pytest.raises(CollectionExists):
            log.create_collection("c", dim, model, SETTINGS)


def test_a_collection_is_what_it_was_made_as(writer):
    row = writer.log.create_collection("d", 3, "model-2", SETTINGS)
    assert (row.name, row.dim, row.model_fingerprint) == ("d", 3, "model-2")
    assert (row.seq, row.purged, row.settings, row.aliases) == (0, 0, SETTINGS, ())
    assert abs(row.create_time - datetime.now(UTC)) < timedelta(minutes=1)
    assert row.key != writer.log.collection("c").key


def test_only_the_settings_that_are_given_change(writer):
    writer.log.create_collection("d", 2, "model", SETTINGS)
    writer.log.set_alias("alias", "d")
    changed = CollectionSettings("", 0.9, CollectionLimits(7, 6, 5, 4, 9))
    change = {"index_factory": "", "max_limit": 9}
    assert writer.log.update_collection("alias", change).settings == changed
    assert writer.log.collection("d").settings == changed
    with pytest.raises(CollectionNotFound):
        writer.log.update_collection("unknown", change)


def test_collections_are_listed_by_name_with_their_aliases(writer):
    for name in ("b", "a-1", "a_1"):
        writer.create(name)
    writer.log.set_alias("second", "b")
    writer.log.set_alias("first", "b")
    rows = {row.name: row for row in writer.log.collections()}
    assert list(rows) == ["a-1", "a_1", "b", "c"]
    assert rows["b"].aliases == ("first", "second")
    assert rows["b"] == writer.log.collection("first")
    assert [row.name for row in writer.log.collections(after="a-1", limit=2)] == ["a_1", "b"]


def test_a_deleted_collection_is_gone_and_a_new_one_has_another_epoch(writer):
    before = writer.log.collection("c")
    writer.put("a", "b")
    assert writer.log.delete_collection("c") == (before.epoch, 2)
    with pytest.raises(CollectionNotFound):
        writer.log.collection("c")
    after = writer.create()
    assert (after.epoch != before.epoch, after.key != before.key) == (True, True)
    assert writer.ids() == []
    with pytest.raises(CollectionNotFound):
        writer.log.read_after("c", before.epoch, 0, range(256), 10, 2)
    with pytest.raises(CollectionNotFound):
        writer.log.delete_collection("d")


def test_every_call_takes_an_alias_but_deletion(writer):
    assert writer.log.set_alias("alias", "c") == ""
    writer.put("a", "b", collection="alias")
    writer.delete("a", collection="alias")
    assert writer.ids("alias") == ["b"]
    assert [row.id for row in writer.log.get("alias", ["b"])] == ["b"]
    with pytest.raises(CollectionNotFound):
        writer.log.delete_collection("alias")


def test_an_alias_moves_from_one_moment_to_the_next(writer):
    writer.create("d")
    writer.log.set_alias("alias", "c")
    writer.put("a", collection="alias")
    assert writer.log.set_alias("alias", "d") == "c"
    assert writer.log.set_alias("alias", "d") == "d"
    assert writer.log.collection("alias").name == "d"
    assert writer.log.collection("c").aliases == ()
    assert writer.ids("alias") == []


def test_names_and_aliases_share_one_space(writer):
    writer.log.set_alias("alias", "c")
    with pytest.raises(CollectionExists, match="is an alias of collection 'c'"):
        writer.create("alias")
    with pytest.raises(CollectionExists, match="is the name of a collection"):
        writer.log.set_alias("c", "c")
    for collection in ("alias", "unknown"):
        with pytest.raises(CollectionNotFound):
            writer.log.set_alias("other", collection)


def test_aliases_go_by_themselves_or_with_their_collection(writer):
    writer.log.set_alias("one", "c")
    writer.log.set_alias("two", "c")
    writer.log.delete_alias("one")
    with pytest.raises(AliasNotFound, match="'one'"):
        writer.log.delete_alias("one")
    assert writer.log.collection("c").aliases == ("two",)
    writer.log.delete_collection("c")
    with pytest.raises(AliasNotFound):
        writer.log.delete_alias("two")
    writer.create("two")


def test_names_that_the_tables_cannot_hold_are_refused(writer):
    with pytest.raises(InvalidField, match="model_fingerprint"):
        writer.log.create_collection("d", 2, "a\0b", SETTINGS)
    for name in ("a\0b", "a,b"):
        with pytest.raises(InvalidField):
            writer.create(name)
        with pytest.raises(InvalidField):
            writer.log.set_alias(name, "c")
        with pytest.raises(AliasNotFound):
            writer.log.delete_alias(name)


def test_a_mirror_is_younger_than_what_it_mirrors_whatever_the_clock_says(writer, monkeypatch):
    """A migration tells the old collection from the new one by their ages."""

    class Behind(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(hours=1)

    old = writer.log.collection("c")
    monkeypatch.setattr(catalog, "datetime", Behind)
    made = writer.log.create_collection("new", 2, "other", CollectionSettings(mirror="c"))
    assert made.create_time > old.create_time
