"""A search from end to end: what each stage adds to it, and what it is when a stage fails."""

from __future__ import annotations

import asyncio

import pytest

from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import (
    CollectionNotFound,
    DataLoss,
    DeadlineExceeded,
    InvalidField,
    InvalidImage,
    LogUnavailable,
    ModelMismatch,
    Overloaded,
    ShardUnavailable,
    Unavailable,
)
from mmesh.search import MergePolicy, Rerank, RerankOutcome, Search
from mmesh.serving.deadline import Deadline
from services.gateway.catalog import Catalog
from services.gateway.config import GatewaySettings
from services.gateway.search.pipeline import Pipeline

TEXT, IMAGE, PAIR = Modality
CAT = Content.of("a cat")


def soon():
    return Deadline.after(10)


@pytest.fixture
async def make_pipeline(encoder, index):
    made = []

    def make(reranker=None, **settings):
        catalog = Catalog(index)
        pipeline = Pipeline(encoder, index, catalog, reranker, GatewaySettings(**settings))
        made.extend((pipeline, catalog))
        return pipeline

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline()


def search_for(query=CAT, **options):
    return Search("photos", query, **options)


def ids_of(result):
    return [hit.id for hit in result.hits]


def reasons_of(result):
    return [one.reason for one in result.degradations]


# -- the stages


async def test_the_answer_tells_how_it_was_made(pipeline, index):
    index.hold(text={"a": 0.9, "b": 0.7, "c": 0.5})
    result = await pipeline.search(search_for(target=TEXT, limit=2), soon())
    assert [(hit.id, hit.rank, hit.score) for hit in result.hits] == [("a", 1, 0.9), ("b", 2, 0.7)]
    assert (result.coverage.shards_answered, result.coverage.shards_total) == (2, 2)
    assert result.token == "e:10"
    receipt = result.receipt
    assert (receipt.searched, receipt.target_source) == ((TEXT,), "requested")
    assert [stage.name for stage in receipt.stages] == [
        "plan", "encode", "search", "merge", "answer",
    ]  # fmt: skip
    assert sum(stage.seconds for stage in receipt.stages) == pytest.approx(receipt.total_seconds)


async def test_an_embedding_is_made_once_for_equal_queries(pipeline, encoder, index):
    index.hold(text={"a": 0.9})
    first = await pipeline.search(search_for(target=TEXT), soon())
    second = await pipeline.search(search_for(target=TEXT), soon())
    assert (first.receipt.embedding_cached, second.receipt.embedding_cached) == (False, True)
    assert encoder.calls["encode"] == 1


async def test_lists_of_several_modalities_are_merged_by_calibrated_scores(pipeline, index):
    index.hold(text={"a": 0.9, "b": 0.8}, image={"i": 0.4, "j": 0.1})
    result = await pipeline.search(search_for(), soon())
    assert set(ids_of(result)) == {"a", "b", "i", "j"}
    assert result.receipt.calibration
    assert result.degradations == ()


async def test_without_a_calibration_lists_are_merged_by_raw_scores(pipeline, encoder, index):
    encoder.faults["model"] = Unavailable("away")
    index.hold(text={"a": 0.9, "b": 0.8}, image={"i": 0.4})
    result = await pipeline.search(search_for(), soon())
    assert ids_of(result)[0] == "a"
    assert reasons_of(result) == ["CALIBRATION_MISSING"]


async def test_raw_scores_need_no_calibration(pipeline, encoder, index):
    index.hold(text={"a": 0.9}, image={"i": 0.4})
    await pipeline.search(search_for(merge=MergePolicy.SCORE), soon())
    assert encoder.calls["model"] == 0


async def test_a_query_that_the_model_cuts_says_so(pipeline, index):
    index.hold(text={"a": 0.9})
    result = await pipeline.search(search_for(Content.of("too long"), target=TEXT), soon())
    assert reasons_of(result) == ["TEXT_TRUNCATED"]


async def test_a_query_that_cannot_be_encoded_is_named_as_the_query(pipeline):
    with pytest.raises(InvalidImage) as refused:
        await pipeline.search(search_for(Content.of(b"no picture")), soon())
    assert refused.value.field == "query.parts[0].image.data"


async def test_more_searches_than_are_allowed_at_a_time_are_refused(make_pipeline, index):
    pipeline = make_pipeline(max_running=1)
    hang = index.hang("search")
    running = asyncio.create_task(pipeline.search(search_for(target=TEXT), soon()))
    await hang.begun.wait()
    with pytest.raises(Overloaded):
        await pipeline.search(search_for(target=TEXT), soon())
    hang.free.set()
    await running
    index.hold(text={"a": 0.9})
    assert ids_of(await pipeline.search(search_for(target=TEXT), soon())) == ["a"]


# -- batches


async def test_searches_that_differ_in_their_query_travel_together(pipeline, encoder, index):
    index.hold(text={"a": 0.9})
    queries = [Content.of(f"query {n}") for n in range(5)]
    searches = [search_for(query, target=TEXT) for query in queries]
    results = await pipeline.search_batch([*searches, search_for(target=IMAGE)], soon())
    assert [ids_of(one) for one in results] == [["a"]] * 5 + [[]]
    assert encoder.calls["encode"] == 1
    assert sorted(len(order.queries) for order in index.orders) == [1, 5]


async def test_one_search_of_a_batch_fails_alone(pipeline, index):
    index.hold(text={"a": 0.9})
    good, bad = search_for(target=TEXT), search_for(Content.of(b"no picture"), target=TEXT)
    unknown = Search("unknown", CAT, target=TEXT)
    results = await pipeline.search_batch([good, bad, unknown], soon())
    assert ids_of(results[0]) == ["a"]
    assert [type(one) for one in results[1:]] == [InvalidImage, CollectionNotFound]


# -- collections that move


async def test_a_name_that_stands_for_another_collection_by_now_is_looked_up_again(pipeline, index):
    index.names["live"] = "photos"
    index.hold(text={"a": 0.9})
    await pipeline.search(Search("live", CAT, target=TEXT), soon())
    index.names = {"live": "photos-2", "photos-2": "photos-2"}
    assert ids_of(await pipeline.search(Search("live", CAT, target=TEXT), soon())) == ["a"]
    assert [order.collection for order in index.orders] == ["photos", "photos", "photos-2"]


async def test_a_mismatch_that_stays_is_the_answer(pipeline, index):
    index.missing = dict.fromkeys(range(2), ModelMismatch("of another model"))
    with pytest.raises(ModelMismatch):
        await pipeline.search(search_for(target=TEXT), soon())
    assert len(index.orders) == 2


async def test_a_limit_of_the_collection_below_the_depth_of_judging_is_kept(
    make_pipeline, index, reranker
):
    index.hold(text={f"c{n}": 0.9 - n / 100 for n in range(9)})
    prepare = index.prepare

    async def refuse_deep(order, deadline):
        if order.limit > 5:
            raise InvalidField("limit", "is too high")
        return await prepare(order, deadline)

    index.prepare = refuse_deep
    result = await make_pipeline(reranker).search(search_for(target=TEXT, limit=5), soon())
    assert len(result.hits) == 5
    with pytest.raises(InvalidField):
        await make_pipeline(reranker).search(search_for(target=TEXT, limit=6), soon())


# -- shards that are missing


async def test_a_shard_that_does_not_answer_is_left_out_and_named(pipeline, index):
    index.hold(text={"a": 0.9, "b": 0.8})
    index.missing = {0: Unavailable("gone")}
    result = await pipeline.search(search_for(target=TEXT), soon())
    assert ids_of(result) == ["a"]  # shard 1 has it
    assert (result.coverage.shards_answered, result.coverage.shards_total) == (1, 2)
    assert reasons_of(result) == ["SHARD_UNAVAILABLE"]


async def test_a_caller_may_insist_on_all_shards(pipeline, index):
    index.hold(text={"a": 0.9})
    index.missing = {0: Unavailable("gone")}
    with pytest.raises(ShardUnavailable) as refused:
        await pipeline.search(search_for(target=TEXT, require_all_shards=True), soon())
    assert refused.value.metadata == {"shards": "0"}


async def test_an_encoder_that_is_away_fails_the_search(pipeline, encoder):
    encoder.faults["encode"] = Unavailable("away")
    with pytest.raises(Unavailable):
        await pipeline.search(search_for(), soon())


# -- content


async def test_content_is_sent_along_and_what_was_deleted_meanwhile_is_dropped(pipeline, index):
    index.hold(text={"a": 0.9, "b": 0.8})
    del index.stored["a"]
    result = await pipeline.search(search_for(target=TEXT, include_content=True), soon())
    assert [(hit.id, hit.content.text) for hit in result.hits] == [("b", "the text of b")]
    assert result.degradations == ()


@pytest.mark.parametrize(
    "error",
    [LogUnavailable("the log is away"), DeadlineExceeded("late"), Overloaded("full"),
     DataLoss("a picture is broken")],
    ids=lambda error: error.reason,
)  # fmt: skip
async def test_while_content_cannot_be_read_hits_come_without_it(pipeline, index, error):
    index.hold(text={"a": 0.9, "b": 0.8})
    index.faults["get"] = error
    result = await pipeline.search(search_for(target=TEXT, include_content=True), soon())
    assert [(hit.id, hit.content) for hit in result.hits] == [("a", None), ("b", None)]
    assert reasons_of(result) == ["CONTENT_UNAVAILABLE"]
    assert error.message in result.degradations[0].message
    assert [stage.name for stage in result.receipt.stages][-2:] == ["fetch", "answer"]


async def test_a_log_that_hangs_costs_content_a_part_of_the_time_only(pipeline, index):
    given: list[float] = []

    async def hang(collection, ids, deadline):
        given.append(deadline.remaining())
        raise DeadlineExceeded("late")

    index.hold(text={"a": 0.9})
    index.get = hang
    await pipeline.search(search_for(target=TEXT, include_content=True), Deadline.after(100))
    assert given[0] < 90


async def test_a_collection_that_was_deleted_meanwhile_is_an_error(pipeline, index):
    index.hold(text={"a": 0.9})
    index.faults["get"] = CollectionNotFound("photos")
    with pytest.raises(CollectionNotFound):
        await pipeline.search(search_for(target=TEXT, include_content=True), soon())


# -- judging


async def test_judged_hits_are_in_the_judges_order_and_keep_falling_scores(
    make_pipeline, index, reranker
):
    index.hold(text={"a": 0.9, "b": 0.8, "c": 0.7})
    reranker.scores = {"the text of a": 0.1, "the text of b": 0.2, "the text of c": 0.9}
    result = await make_pipeline(reranker).search(search_for(target=TEXT), soon())
    assert ids_of(result) == ["c", "b", "a"]
    assert [hit.rerank_score for hit in result.hits] == [0.9, 0.2, 0.1]
    assert [hit.score for hit in result.hits] == [0.9, 0.8, 0.7]
    assert result.receipt.rerank_outcome is RerankOutcome.FULL
    assert result.receipt.reranker_fingerprint == "judge-1"


async def test_content_that_was_fetched_to_be_judged_is_not_fetched_again(
    make_pipeline, index, reranker
):
    index.hold(text={"a": 0.9, "b": 0.8})
    search = search_for(target=TEXT, include_content=True)
    result = await make_pipeline(reranker).search(search, soon())
    assert [hit.content.text for hit in result.hits] == ["the text of a", "the text of b"]
    assert index.calls["get"] == 1


async def test_hits_that_the_judge_did_not_come_to_keep_their_places(
    make_pipeline, index, reranker
):
    index.hold(text={"a": 0.9, "b": 0.8, "c": 0.7})
    reranker.scores = {"the text of a": 0.1, "the text of b": None, "the text of c": 0.9}
    result = await make_pipeline(reranker).search(search_for(target=TEXT), soon())
    assert ids_of(result) == ["c", "b", "a"]
    assert reasons_of(result) == ["RERANK_PARTIAL"]
    assert result.receipt.rerank_outcome is RerankOutcome.PARTIAL


@pytest.mark.parametrize("method", ["judge", "rerank"])
async def test_without_the_reranker_hits_are_in_first_stage_order(
    make_pipeline, index, reranker, method
):
    index.hold(text={"a": 0.9, "b": 0.8})
    reranker.faults[method] = Unavailable("away")
    result = await make_pipeline(reranker).search(search_for(target=TEXT), soon())
    assert ids_of(result) == ["a", "b"]
    assert reasons_of(result) == ["RERANK_UNAVAILABLE"]
    assert result.receipt.rerank_outcome is RerankOutcome.SKIPPED


async def test_a_reranker_that_hangs_is_left_when_its_budget_is_spent(
    make_pipeline, index, reranker
):
    index.hold(text={"a": 0.9})
    reranker.hang("rerank")
    search = search_for(target=TEXT, rerank=Rerank(5, max_seconds=0.02))
    result = await make_pipeline(reranker).search(search, soon())
    assert reasons_of(result) == ["RERANK_UNAVAILABLE"]
    assert "time ran out" in result.degradations[0].message


async def test_the_budget_that_was_asked_for_counts_from_the_beginning_of_judging(
    make_pipeline, index, reranker
):
    """The reranker gets what fetching content has left of it."""
    index.hold(text={"a": 0.9})
    get = index.get

    async def slow_get(*arguments):
        await asyncio.sleep(0.05)
        return await get(*arguments)

    index.get = slow_get
    search = search_for(target=TEXT, rerank=Rerank(5, max_seconds=1.0))
    await make_pipeline(reranker).search(search, soon())
    assert reranker.budget_s <= 0.95


async def test_content_that_cannot_be_read_cannot_be_judged(make_pipeline, index, reranker):
    index.hold(text={"a": 0.9, "b": 0.8})
    index.faults["get"] = LogUnavailable("the log is away")
    pipeline = make_pipeline(reranker)
    result = await pipeline.search(search_for(target=TEXT), soon())
    assert ids_of(result) == ["a", "b"]
    assert sorted(reasons_of(result)) == ["CONTENT_UNAVAILABLE", "RERANK_UNAVAILABLE"]
    result = await pipeline.search(search_for(target=TEXT, include_content=True), soon())
    assert sorted(reasons_of(result)) == ["CONTENT_UNAVAILABLE", "RERANK_UNAVAILABLE"]


async def test_a_mesh_without_a_reranker_says_so_to_who_asks_for_it_only(pipeline, index):
    index.hold(text={"a": 0.9})
    assert reasons_of(await pipeline.search(search_for(target=TEXT), soon())) == []
    asked = await pipeline.search(search_for(target=TEXT, rerank=Rerank(5)), soon())
    assert reasons_of(asked) == ["RERANK_UNAVAILABLE"]


async def test_nothing_is_fetched_for_an_empty_answer(make_pipeline, index, reranker):
    search = search_for(target=TEXT, include_content=True)
    result = await make_pipeline(reranker).search(search, soon())
    assert (result.hits, result.degradations) == ((), ())
    assert index.calls["get"] == 0


async def test_the_candidates_of_a_hit_need_no_content_unless_asked_for(pipeline, index):
    index.hold(text={"a": 0.9})
    index.stored["a"] = Candidate("a", CAT)
    result = await pipeline.search(search_for(target=TEXT), soon())
    assert result.hits[0].content is None
    assert index.calls["get"] == 0
