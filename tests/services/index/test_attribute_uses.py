"""Types of attributes live as long as a candidate uses them, and numbers widen."""

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmesh.candidates import Candidate
from mmesh.collections import CollectionSettings
from mmesh.content import Content
from mmesh.errors import InvalidField, MmeshError
from services.index.log.attributes import type_check
from services.index.log.ledger import Delete, DeleteUnchanged, Mirrored, Upsert
from services.index.log.recount import recount
from tests.services.index.conftest import new_row


def upsert(collection="c", /, **attributes):
    """Return a write of candidates with these attributes, by id."""
    made = [Candidate(i, Content.of("text"), found) for i, found in attributes.items()]
    rows = [
        new_row(one.id, attributes=json.dumps(one.attributes) if one.attributes else "")
        for one in made
    ]
    return Upsert(collection, rows, type_check(made), mirrored=Mirrored(rows, ""))


def state_of(log, name="c"):
    row = log.collection(name)
    return row.attribute_types, log.attributes(row.key)


def test_a_float_after_an_integer_widens_the_attribute(writer):
    writer.write(upsert(a={"price": 10}))
    writer.write(upsert(b={"price": 9.99}, c={"price": 11}))
    counts = {("price", "float"): 1, ("price", "integer"): 2}
    assert state_of(writer.log) == ({"price": "float"}, counts)
    writer.write(Delete("c", ["b"]))
    assert state_of(writer.log) == ({"price": "integer"}, {("price", "integer"): 2})


@pytest.mark.parametrize(
    "forget",
    [
        Delete("c", ["a", "b", "unknown", "a"]),
        DeleteUnchanged("c", {"a": 1, "b": 2}),
        upsert(a={}, b={"other": True}),
        upsert(a={"price": "cheap"}, b={}),
    ],
    ids=["deleted", "deleted by filter", "replaced", "retyped"],
)
def test_the_type_of_an_attribute_that_none_uses_is_forgotten(writer, forget):
    writer.write(upsert(a={"price": "10"}, b={"price": "11"}))
    with pytest.raises(InvalidField, match="is of type float; in this collection it is string"):
        writer.write(upsert(z={"price": 9.99}))
    writer.write(forget)
    writer.write(Delete("c", ["a"]))
    writer.write(upsert(z={"price": 9.99}))
    assert state_of(writer.log)[0]["price"] == "float"


def test_what_a_group_deletes_frees_the_type_for_its_next_write(writer):
    writer.write(upsert(a={"price": "10"}))
    outcomes = writer.log.write(
        [upsert(b={"price": 1}), Delete("c", ["a"]), upsert(b={"price": 1})]
    )
    assert [isinstance(one, MmeshError) for one in outcomes] == [True, False, False]
    assert state_of(writer.log) == ({"price": "integer"}, {("price", "integer"): 1})


def test_a_mirror_counts_what_it_holds(writer):
    writer.log.create_collection("new", 2, "model", CollectionSettings(mirror="c"))
    writer.log.update_collection("c", {"mirror": "new"})
    write = upsert(a={"x": 1}, b={"y": 1})
    held = [row for row in write.candidates if row.id == "a"]
    writer.write(Upsert("c", write.candidates, write.check_types, mirrored=Mirrored(held, "")))
    assert state_of(writer.log)[1] == {("x", "integer"): 1, ("y", "integer"): 1}
    assert state_of(writer.log, "new")[1] == {("x", "integer"): 1}
    writer.write(Delete("new", ["a"]))
    assert state_of(writer.log, "new") == ({}, {})
    assert state_of(writer.log)[1] == {("y", "integer"): 1}


def test_what_is_deleted_with_its_collection_is_purged(writer):
    writer.write(upsert(a={"x": 1}))
    key = writer.log.collection("c").key
    writer.log.delete_collection("c")
    writer.log.purge(0)
    assert writer.log.attributes(key) == {}


@pytest.mark.parametrize("damaged", ['{"x": ', "[1]", '{"x": null}', "7"])
def test_a_damaged_row_can_be_replaced_and_deleted_beside_others(writer, damaged):
    rows = [new_row(one, attributes=damaged) for one in "ab"]
    writer.write(Upsert("c", rows, lambda types: types))
    outcomes = writer.log.write([upsert(a={"x": 1}), Delete("c", ["b"]), upsert(c={"x": 2})])
    assert not [one for one in outcomes if isinstance(one, MmeshError)]
    assert state_of(writer.log) == ({"x": "integer"}, {("x", "integer"): 2})


KINDS = {bool: "boolean", int: "integer", float: "float", str: "string", list: "string_list"}
ATTRIBUTES = st.dictionaries(
    st.sampled_from("xyz"), st.sampled_from([1, 2.5, "a", True, ["a"]]), max_size=2
)
WRITES = st.lists(
    st.dictionaries(st.sampled_from("abc"), ATTRIBUTES | st.none(), min_size=1, max_size=3),
    max_size=6,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WRITES)
def test_counts_and_types_are_those_of_the_candidates_that_live(log_file, writes):
    """Each write upserts some candidates, or deletes those that are none."""
    held = {}
    for write in writes:
        gone = [i for i, attributes in write.items() if attributes is None]
        new = {i: found for i, found in write.items() if found is not None}
        group = [Delete("c", gone), upsert("c", **new)]
        _, stored = log_file.log.write(group)
        held = {i: found for i, found in held.items() if i not in gone}
        if not isinstance(stored, MmeshError):
            held |= new
    used = Counter(
        (name, KINDS[type(value)]) for found in held.values() for name, value in found.items()
    )
    types, counts = state_of(log_file.log)
    assert counts == used
    kinds = {name: {kind for other, kind in used if other == name} for name, _ in used}
    assert types == {n: "float" if len(found) > 1 else min(found) for n, found in kinds.items()}
    log_file.write(Delete("c", list("abc")))
    assert state_of(log_file.log) == ({}, {})


@pytest.fixture
def log_file(tmp_path, open_log):
    writer = open_log(f"sqlite:///{tmp_path / 'model.db'}")
    writer.create()
    return writer


def test_what_an_earlier_release_did_not_count_is_counted_anew(writer):
    writer.write(upsert(a={"price": 10, "tag": "x"}, b={"price": 9.5}, c={"seen": True}))
    counted = state_of(writer.log)
    database = writer.log._database
    assert recount(database) == []
    with database.write() as connection:  # such releases know the types, and no counts
        for undo in (
            "UPDATE attributes SET count = 7 WHERE name = 'price' AND type = 'float'",
            "DELETE FROM attributes WHERE name = 'tag'",
            "UPDATE candidates SET attributes = '{\"new\": 1}' WHERE id = 'c'",
        ):
            connection.exec_driver_sql(undo)
    assert recount(database) == ["c"]
    types, counts = state_of(writer.log)
    assert types == {"price": "float", "tag": "string", "new": "integer"}
    assert counts == {use: n for use, n in counted[1].items() if use[0] != "seen"} | {
        ("new", "integer"): 1
    }
    assert recount(database) == []
