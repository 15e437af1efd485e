"""Requests that are repeated, and request ids that are used twice, on both engines."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mmesh.collections import CollectionSettings
from mmesh.errors import AliasNotFound, CollectionNotFound, InvalidField, RequestIdReused
from services.index.log.ledger import Delete, DeleteUnchanged, Written

NONE = CollectionSettings()


def seqs_of(writer, collection="c"):
    return {row.id: row.seq for row in writer.log.page(collection, "", 100).rows}


def test_a_deletion_that_is_repeated_gets_its_first_answer_and_spares_a_namesake(writer):
    writer.put("a", "b")
    epoch = writer.log.collection("c").epoch
    assert writer.log.delete_collection("c", "once") == (epoch, 2)
    assert writer.log.delete_collection("c", "once") == (epoch, 2)
    namesake = writer.create("c")
    assert writer.log.delete_collection("c", "once") == (epoch, 2)
    assert writer.log.collection("c") == namesake
    with pytest.raises(CollectionNotFound):
        writer.log.delete_collection("unknown", "another")


def test_a_creation_that_is_repeated_does_not_bring_back_what_was_deleted(writer):
    made = writer.log.create_collection("d", 2, "model", NONE, "once")
    assert writer.log.create_collection("d", 2, "model", NONE, "once") == made
    writer.log.delete_collection("d")
    with pytest.raises(CollectionNotFound):
        writer.log.create_collection("d", 2, "model", NONE, "once")
    assert writer.log.create_collection("d", 2, "model", NONE, "anew").epoch != made.epoch


def test_a_change_that_is_repeated_does_not_undo_a_later_one(writer):
    writer.log.update_collection("c", {"max_limit": 5}, "once")
    writer.log.update_collection("c", {"max_limit": 9}, "later")
    assert (
        writer.log.update_collection("c", {"max_limit": 5}, "once").settings.limits.max_limit == 9
    )


def test_an_alias_that_is_set_or_deleted_again_stays_where_it_is(writer):
    writer.create("d")
    assert writer.log.set_alias("alias", "c", "first") == ""
    assert writer.log.set_alias("alias", "d", "second") == "c"
    assert writer.log.set_alias("alias", "d", "second") == "c"
    assert writer.log.set_alias("alias", "c", "first") == ""
    assert writer.log.collection("alias").name == "d"
    writer.log.delete_alias("alias", "third")
    writer.log.set_alias("alias", "c")
    writer.log.delete_alias("alias", "third")
    assert writer.log.collection("alias").name == "c"
    with pytest.raises(AliasNotFound):
        writer.log.delete_alias("unknown", "fourth")


def test_a_request_that_failed_is_not_remembered(writer):
    with pytest.raises(CollectionNotFound):
        writer.log.set_alias("alias", "d", "once")
    writer.create("d")
    assert writer.log.set_alias("alias", "d", "once") == ""
    assert writer.log.collection("alias").name == "d"


def test_a_request_id_that_is_used_for_something_else_is_refused(writer, row, upsert):
    log = writer.log
    log.set_alias("alias", "c", "names")
    for reuse in (
        lambda: log.set_alias("other", "c", "names"),
        lambda: log.delete_alias("alias", "names"),
        lambda: log.delete_collection("c", "names"),
        lambda: log.update_collection("c", {"max_limit": 5}, "names"),
        lambda: log.create_collection("d", 2, "model", NONE, "names"),
    ):
        with pytest.raises(RequestIdReused, match="'names'"):
            reuse()
    assert [row.name for row in log.collections()] == ["c"]
    written = writer.put("a", request_id="write")
    for other in (
        upsert([row("b")], request_id="write"),
        upsert([row("a", attributes='{"year": 1}')], request_id="write"),
        Delete("c", ["a"], "write"),
        DeleteUnchanged("c", {"a": 1}, "write"),
    ):
        with pytest.raises(RequestIdReused):
            writer.write(other)
    again = upsert([row("a", number=7)], request_id="write")  # vectors differ in their last bits
    assert writer.write(again) == written
    with pytest.raises(InvalidField, match="NUL"):
        log.delete_collection("c", "a\0b")


def test_of_two_processes_that_get_the_same_request_one_does_it(writer, open_log, log_url):
    """A gateway asks the next process when the first does not answer in time."""
    writer.put("a")
    both = [writer, open_log(log_url)]
    with ThreadPoolExecutor(2) as pool:
        answers = [*pool.map(lambda one: one.log.delete_collection("c", "once"), both)]
    assert answers[0] == answers[1]
    assert answers[0].candidates == 1


def test_the_steps_of_a_deletion_add_up_until_the_last(writer):
    writer.put("a", "b", "c", "d")
    seqs, key = seqs_of(writer), writer.log.collection("c").key

    def step(*ids, is_last=False, digest="of the filter"):
        chosen = {candidate_id: seqs[candidate_id] for candidate_id in ids}
        return writer.write(DeleteUnchanged("c", chosen, "once", digest, 4, is_last))

    assert writer.log.answer(key, "once", "of the filter") is None
    assert step("a", "b").count == 2
    assert step("b", "c").count == 1
    so_far = writer.log.answer(key, "once", "of the filter")
    assert (so_far.count, so_far.until_seq, so_far.is_final) == (3, 4, False)
    with pytest.raises(RequestIdReused):
        step("d", digest="of another filter")
    step(is_last=True)
    done = writer.log.answer(key, "once", "of the filter")
    assert (done.count, done.is_final) == (3, True)
    assert step("d") == Written(done.text, 3)
    assert writer.ids() == ["d"]
    with pytest.raises(RequestIdReused):
        writer.log.answer(key, "once", "of another filter")


def test_the_steps_of_a_deletion_add_up_in_the_mirror_too(writer):
    writer.put("older")
    writer.log.create_collection("new", 2, "model", CollectionSettings(mirror="c"))
    writer.log.update_collection("c", {"mirror": "new"})
    writer.write(DeleteUnchanged("c", {"older": 1}, "once", "of the filter", 1, is_last=False))
    for name in ("c", "new"):
        key = writer.log.collection(name).key
        assert writer.log.answer(key, "once", "of the filter").count == 1
    writer.write(DeleteUnchanged("new", {}, "once", "of the filter", 0))
    for name in ("c", "new"):
        answer = writer.log.answer(writer.log.collection(name).key, "once", "of the filter")
        assert (answer.count, answer.is_final) == (1, True)
