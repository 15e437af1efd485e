"""Writes of many callers in one transaction, on both engines."""

from mmesh.content import Modality
from mmesh.errors import CollectionFull, CollectionNotFound, InvalidField
from services.index.log.ledger import Delete, DeleteUnchanged, Upsert, Written


def refuse(types):
    raise InvalidField("candidates[0].attributes['year']", "is of another type")


def test_a_refused_write_in_a_group_has_no_effect_on_the_others(writer, row, upsert):
    outcomes = writer.log.write(
        [
            upsert([row("a"), row("b")], request_id="first"),
            Upsert("c", [row("refused")], refuse, "second"),
            upsert([row("x")], collection="unknown"),
            Delete("c", ["b"]),
            upsert([row("d")]),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [
        Written,
        InvalidField,
        CollectionNotFound,
        Written,
        Written,
    ]
    assert [o.token.partition(":")[2] for o in outcomes if isinstance(o, Written)] == [
        "2",
        "3",
        "4",
    ]
    assert writer.ids() == ["a", "d"]
    rows, through = writer.after()
    assert (rows.seqs.tolist(), rows.deleted.tolist(), through) == (
        [1, 3, 4],
        [False, True, False],
        4,
    )


def test_in_a_group_the_last_state_of_an_id_wins_and_all_sequences_count(writer, row, upsert):
    writer.put("a")
    outcomes = writer.log.write(
        [
            upsert([row("a", number=1), row("b")]),
            upsert([row("a", Modality.IMAGE, number=2)]),
            Delete("c", ["b"]),
            upsert([row("b", number=3)]),
            DeleteUnchanged("c", {"a": 1}),
        ]
    )
    assert [outcome.count for outcome in outcomes] == [2, 1, 1, 1, 0]
    rows, through = writer.after()
    assert (rows.ids, rows.seqs.tolist(), through) == (("a", "b"), [4, 6], 6)
    assert rows.vectors[:, 0].tolist() == [2, 3]
    assert writer.log.collection("c").counts[Modality.IMAGE] == 1


def test_a_request_id_that_is_twice_in_a_group_is_written_once(writer, row, upsert):
    outcomes = writer.log.write(
        [upsert([row("a")], request_id="r"), upsert([row("a")], request_id="r")]
    )
    assert outcomes[0] == outcomes[1]
    assert writer.log.collection("c").seq == 1


def test_a_group_reaches_several_collections_by_name_and_alias(writer, row, upsert):
    writer.create("d")
    writer.log.set_alias("alias", "d")
    writer.log.write(
        [upsert([row("a")]), upsert([row("b")], "alias"), upsert([row("b"), row("c")], "d")]
    )
    assert (writer.ids("c"), writer.ids("d")) == (["a"], ["b", "c"])
    assert writer.log.collection("d").seq == 3


def test_a_collection_that_fills_up_within_a_group_refuses_the_rest(writer, row, upsert):
    writer.create("small", most=2)
    outcomes = writer.log.write(
        [
            upsert([row("a"), row("b")], "small"),
            upsert([row("c")], "small"),
            Delete("small", ["a"]),
            upsert([row("c")], "small"),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Written, CollectionFull, Written, Written]
    assert writer.ids("small") == ["b", "c"]


def test_nothing_to_write_is_written(writer, upsert):
    assert writer.log.write([]) == []
    [written] = writer.log.write([upsert([])])
    assert written == Written(writer.log.collection("c").token, 0)
