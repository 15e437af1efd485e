"""Collections that are each other's mirror: in step whatever is written, by whom, and when."""

import threading
import uuid
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from mmesh.errors import CollectionFull, FailedPrecondition, InvalidField, ModelMismatch, NotFound
from services.index.log.ledger import Delete, DeleteUnchanged, Fill, Mirrored, Upsert
from tests.effort import EFFORT

IDS = st.sampled_from(["a", "b", "c", "d"])


def same_types(types):
    return types


def put(collection, rows, request_id="", *, held=None):
    """Write rows to a collection, and to its mirror those that it can hold."""
    mirrored = Mirrored(rows if held is None else held, "")
    return Upsert(collection, rows, same_types, request_id, mirrored=mirrored)


def fill(collection, rows):
    return Fill(collection, rows, same_types)


@pytest.fixture
def pair(writer):
    """Two collections, "new" and "c", that are each other's mirror."""
    writer.log.create_collection("new", 2, "model", CollectionSettings(mirror="c"))
    writer.log.update_collection("c", {"mirror": "new"})
    return writer


def test_what_is_written_to_one_is_in_both(pair, row):
    pair.write(put("c", [row("a"), row("b")]))
    pair.write(put("new", [row("c", Modality.IMAGE)]))
    pair.write(Delete("new", ["a"]))
    pair.write(DeleteUnchanged("c", {"b": 2}))
    assert pair.ids("c") == pair.ids("new") == ["c"]
    for name in ("c", "new"):
        assert pair.log.collection(name).counts[Modality.IMAGE] == 1
        assert pair.log.collection(name).seq == 5


def test_each_has_the_vector_of_its_own_model(pair, row):
    pair.write(
        Upsert(
            "c", [row("a", number=1)], same_types, mirrored=Mirrored([row("a", number=2)], "model")
        )
    )
    first, second = (pair.log.get(name, ["a"], vectors=True)[0] for name in ("c", "new"))
    assert (first.vector, second.vector) == (row("a", number=1).vector, row("a", number=2).vector)


def test_a_write_without_vectors_for_the_mirror_leaves_no_trace(pair, row, upsert):
    with pytest.raises(ModelMismatch):
        pair.write(upsert([row("a")], request_id="one"))
    wrong = Upsert("c", [row("a")], same_types, mirrored=Mirrored([row("a")], "another"))
    with pytest.raises(ModelMismatch):
        pair.write(wrong)
    assert pair.log.collection("c").seq == pair.log.collection("new").seq == 0


def test_a_change_of_other_settings_leaves_the_mirror_as_it_is(pair, row):
    pair.log.update_collection("c", {"recall_target": 0.9, "max_limit": 5})
    pair.write(put("c", [row("a")]))
    assert pair.ids("c") == pair.ids("new") == ["a"]


def test_what_does_not_fit_into_the_mirror_is_written_to_neither(pair, row):
    pair.log.update_collection("new", {"max_candidates": 1})
    with pytest.raises(CollectionFull):
        pair.write(put("c", [row("a"), row("b")]))
    assert pair.ids("c") == pair.ids("new") == []


def test_what_the_mirror_cannot_hold_is_not_there_in_an_old_state_either(pair, row):
    pair.write(put("c", [row("a"), row("b")]))
    pair.write(put("c", [row("a"), row("b")], held=[row("b")]))
    assert (pair.ids("c"), pair.ids("new")) == (["a", "b"], ["b"])


def test_a_repeated_request_is_recognised_by_the_mirror(pair, row):
    pair.write(put("c", [row("a")], "one"))
    pair.write(Delete("c", ["a"]))
    assert pair.write(put("new", [row("a")], "one")).token.endswith(":1")
    assert pair.ids("c") == pair.ids("new") == []


def test_a_fill_brings_in_what_is_older_than_the_mirror(writer, row):
    writer.put("a", "b", "c")
    writer.log.create_collection("new", 2, "model", CollectionSettings(mirror="c"))
    writer.log.update_collection("c", {"mirror": "new"})
    assert writer.write(fill("new", [row("a"), row("b")])).count == 2
    assert writer.ids("new") == ["a", "b"]
    assert writer.log.collection("c").seq == 3


def test_a_fill_that_comes_late_neither_resurrects_nor_overwrites(writer, row):
    writer.put("deleted", "replaced", "refused")
    writer.log.create_collection("new", 2, "model", CollectionSettings(mirror="c"))
    writer.log.update_collection("c", {"mirror": "new"})
    writer.delete("deleted")
    writer.write(put("c", [row("replaced", number=2)]))
    writer.write(put("c", [row("refused")], held=[]))
    stale = [row("deleted"), row("replaced", number=1), row("refused"), row("never there")]
    assert writer.write(fill("new", stale)).count == 0
    [stored] = writer.log.get("new", ["replaced"], vectors=True)
    assert stored.vector == row("replaced", number=2).vector
    writer.log.purge(-1)  # forgets that it was deleted
    writer.write(fill("new", [row("deleted")]))
    assert writer.ids("new") == ["replaced"]


def test_a_fill_needs_a_mirror(writer, row):
    with pytest.raises(FailedPrecondition):
        writer.write(fill("c", [row("a")]))


def test_a_mirror_is_another_collection_and_is_not_changed_for_a_third(pair):
    pair.create("third")
    with pytest.raises(FailedPrecondition, match="'new'"):
        pair.log.update_collection("c", {"mirror": "third"})
    pair.log.set_alias("other", "c")
    for wrong in ("third", "other"):
        with pytest.raises(InvalidField):
            pair.log.update_collection("third", {"mirror": wrong})
    with pytest.raises(NotFound):
        pair.log.create_collection("fourth", 2, "model", CollectionSettings(mirror="nothing"))
    pair.log.update_collection("c", {"mirror": ""})
    pair.put("a")
    assert (pair.ids("c"), pair.ids("new")) == (["a"], [])


def test_a_collection_outlives_its_mirror(pair, row):
    pair.log.set_alias("live", "new")
    pair.write(put("live", [row("a")]))
    pair.log.delete_collection("c")
    assert pair.log.collection("live").settings.mirror == ""
    pair.create("c")
    pair.put("b", collection="live")
    assert (pair.ids("new"), pair.ids("c")) == (["a", "b"], [])


def test_writers_of_both_at_once_do_not_wait_for_each_other(pair, open_log, log_url, row):
    """Each begins with another one of the two, and they write the same candidates."""
    failures = []

    def write(name):
        writer = open_log(log_url)
        try:
            for number in range(20):
                writer.write(put(name, [row(f"id-{number % 5}", number=number)]))
                writer.write(Delete(name, [f"id-{(number + 2) % 5}"]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("c", "new")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    first, second = (pair.log.get(n, pair.ids("c"), vectors=True) for n in ("c", "new"))
    assert {one.id: one.vector for one in first} == {one.id: one.vector for one in second}
    assert pair.ids("c") == pair.ids("new")


class MirrorMachine(RuleBasedStateMachine):
    """A collection with a past gets a mirror; late fills come between all kinds of writes."""

    def __init__(self, writer, row):
        super().__init__()
        self.writer, self.row = writer, row
        self.old, self.new = (f"c-{uuid.uuid4().hex[:12]}" for _ in range(2))
        self.writer.create(self.old)
        self.rows, self.read, self.number = {}, [], 0
        self.linked = False

    def vectors(self, name):
        found = self.writer.log.page(name, "", 100, vectors=True).rows
        return {one.id: one.vector for one in found}

    @rule()
    def link(self):
        if not self.linked:
            settings = CollectionSettings(mirror=self.old)
            self.writer.log.create_collection(self.new, 2, "model", settings)
            self.writer.log.update_collection(self.old, {"mirror": self.new})
            self.linked = True

    @rule(ids=st.lists(IDS, min_size=1, unique=True), to_new=st.booleans())
    def put(self, ids, to_new):
        self.number += 1
        rows = [self.row(i, number=self.number) for i in ids]
        self.writer.write(put(self.new if to_new and self.linked else self.old, rows))
        self.rows |= {one.id: one.vector for one in rows}

    @rule(ids=st.lists(IDS, min_size=1, unique=True), to_new=st.booleans())
    def delete(self, ids, to_new):
        # By the name of the new one, only what it has by now is deleted, as a client would see.
        name = self.new if to_new and self.linked else self.old
        gone = [i for i in ids if i in self.vectors(name)]
        self.writer.write(Delete(name, ids))
        for candidate_id in gone:
            self.rows.pop(candidate_id)

    @rule()
    def read_for_a_fill(self):
        """What was read before there was a mirror may be older than the mirror knows."""
        if self.linked:
            found = self.vectors(self.old)
            self.read = [replace(self.row(i), vector=vector) for i, vector in found.items()]

    @rule()
    def write_the_fill(self):
        if self.read:
            self.writer.write(fill(self.new, self.read))

    @rule()
    def purge(self):
        self.writer.log.purge(-1)

    @invariant()
    def the_old_one_has_everything_and_the_new_one_nothing_else(self):
        assert self.vectors(self.old) == self.rows
        if self.linked:
            new = self.vectors(self.new)
            assert new.items() <= self.rows.items()
            counts = self.writer.log.collection(self.new).counts
            assert sum(counts.values()) == len(new)

    def teardown(self):
        if self.linked:
            self.read_for_a_fill()
            self.write_the_fill()
            assert self.vectors(self.new) == self.rows


def test_no_order_of_writes_and_fills_lets_the_two_differ(writer, row):
    run_state_machine_as_test(
        lambda: MirrorMachine(writer, row),
        settings=settings(
            max_examples=EFFORT.log_examples,
            stateful_step_count=10,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
