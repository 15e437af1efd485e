"""A search from end to end: what each stage adds to it, and what it is when a stage fails."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import (
    CollectionNotFound,
    DataLoss,
    DeadlineExceeded,
    InternalError,
    InvalidField,
    InvalidImage,
    LogUnavailable,
    ModelMismatch,
    Overloaded,
    ShardUnavailable,
    Unavailable,
)
from mmesh.filters import Compare, Operator
from mmesh.search import MergePolicy, Rerank, RerankOutcome, Search
from mmesh.serving.deadline import Deadline
from mmesh.serving.logs import JsonFormatter
from services.gateway.catalog import Catalog
from services.gateway.config import GatewaySettings
from services.gateway.fair_gate import Caller
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
        made.append(catalog)
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


# -- what is left for operators


def slow_searches(caplog):
    return [record for record in caplog.records if record.getMessage() == "slow search"]


async def test_a_slow_search_is_logged_with_plan_and_stages_but_without_content(
    make_pipeline, index, caplog
):
    index.hold(text={"a": 0.9})
    condition = Compare("secret-name", Operator.EQUAL, "secret value")
    pipeline = make_pipeline(slow_search_ms=0.001)
    await pipeline.search(search_for(target=TEXT, limit=2, filter=condition), soon())
    (line,) = slow_searches(caplog)
    assert (line.outcome, line.collection, line.shards, line.hits) == ("OK", "photos", "2/2", 1)
    assert (line.query, line.searched, line.has_filter) == ("text", ["text"], True)
    assert list(line.stages_ms) == ["plan", "encode", "search", "merge", "answer"]
    assert sum(line.stages_ms.values()) == pytest.approx(line.ms, abs=0.1)
    said = JsonFormatter("gateway").format(line)
    assert CAT.text not in said
    assert "secret" not in said


async def test_a_search_that_is_cut_off_is_slow_too(make_pipeline, index, caplog):
    hang = index.hang("search")
    pipeline = make_pipeline(slow_search_ms=0.001)
    search = asyncio.create_task(pipeline.search(search_for(target=TEXT), soon()))
    await hang.begun.wait()
    search.cancel()
    await asyncio.gather(search, return_exceptions=True)
    (line,) = slow_searches(caplog)
    assert line.outcome == "CANCELLED"
    assert list(line.stages_ms) == ["plan", "encode"]


@pytest.mark.parametrize("limit_ms", [0, 60_000])
async def test_other_searches_are_not_logged(make_pipeline, index, caplog, limit_ms):
    index.hold(text={"a": 0.9})
    await make_pipeline(slow_search_ms=limit_ms).search(search_for(), soon())
    assert not slow_searches(caplog)


async def test_coverage_is_counted_by_shards(pipeline, index):
    def counted(what):
        return REGISTRY.get_sample_value(f"mmesh_gateway_shards_{what}_total")

    index.hold(text={"a": 0.9})
    before = counted("asked"), counted("answered")
    index.missing[1] = ShardUnavailable("shard 1 is away")
    await pipeline.search(search_for(), soon())
    assert (counted("asked"), counted("answered")) == (before[0] + 2, before[1] + 1)


async def test_a_search_counts_once_for_each_reason_however_many_parts_it_lacks(pipeline, index):
    """Or twice as many searches would miss a shard as there are where two are away."""

    def counted(reason):
        labels = {"reason": reason}
        return REGISTRY.get_sample_value("mmesh_gateway_degradations_total", labels) or 0.0

    index.hold(text={"a": 0.9})
    index.shard_count = 3
    index.missing = {shard: Unavailable(f"{shard} is gone") for shard in (0, 2)}
    index.unknown = [{"yaer": "year", "prise": ""}] * 3
    reasons = ["ATTRIBUTE_UNKNOWN", "SHARD_UNAVAILABLE"]
    before = [counted(reason) for reason in reasons]
    result = await pipeline.search(search_for(target=TEXT), soon())
    assert reasons_of(result) == [reason for reason in reasons for _ in range(2)]
    assert [counted(reason) for reason in reasons] == [number + 1 for number in before]


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
        "plan",
        "encode",
        "search",
        "merge",
        "answer",
    ]
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


async def test_a_calibration_is_of_the_model_whatever_the_collection_holds(pipeline, index):
    index.hold(text={"a": 0.9}, image={"i": 0.4})
    one = await pipeline.search(search_for(), soon())
    index.hold(text={"a": 0.2, "b": 0.1}, image={"i": 0.9, "j": 0.8})
    two = await pipeline.search(search_for(), soon())
    assert one.receipt.calibration == two.receipt.calibration


async def test_an_explanation_adds_up(pipeline, index):
    index.hold(text={"a": 0.9, "b": 0.8}, image={"i": 0.4})
    result = await pipeline.search(search_for(explain=True), soon())
    for hit in result.hits:
        told = hit.explanation
        assert told.merge_score == pytest.approx(told.standard_score - told.rank_discount)
        assert told.merge_score == pytest.approx(hit.score)


async def test_an_explanation_without_a_calibration_is_of_raw_scores(pipeline, encoder, index):
    encoder.faults["model"] = Unavailable("away")
    index.hold(text={"a": 0.9, "b": 0.8}, image={"i": 0.4})
    result = await pipeline.search(search_for(explain=True), soon())
    assert [hit.score for hit in result.hits] == [0.9, 0.8, 0.4]
    for hit in result.hits:
        assert (hit.explanation.standard_score, hit.explanation.rank_discount) == (None, 0.0)


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


async def test_a_query_of_unknown_tokens_says_so_from_the_cache_too(pipeline, index):
    index.hold(text={"a": 0.9})
    for _ in range(2):
        result = await pipeline.search(search_for(Content.of("all unknown"), target=TEXT), soon())
        assert reasons_of(result) == ["TEXT_UNKNOWN"]


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


async def test_who_asks_for_little_waits_for_no_backlog_of_another(make_pipeline, index):
    pipeline = make_pipeline(max_searching=1)
    index.hold(text={"a": 0.9})
    hang = index.hang("search")

    def ask(caller: str, limit: int):
        search = search_for(target=TEXT, limit=limit)
        return asyncio.create_task(pipeline.search(search, soon(), Caller(caller)))

    greedy = [ask("greedy", 1) for _ in range(10)]
    await hang.begun.wait()
    polite = ask("polite", 2)
    hang.free.set()
    await asyncio.gather(*greedy, polite)
    assert [order.limit for order in index.orders][1] == 2


# -- batches


async def test_searches_that_differ_in_their_query_travel_together(pipeline, encoder, index):
    index.hold(text={"a": 0.9})
    queries = [Content.of(f"query {n}") for n in range(5)]
    searches = [search_for(query, target=TEXT) for query in queries]
    results = await pipeline.search_batch([*searches, search_for(target=IMAGE)], soon())
    assert [ids_of(one) for one in results] == [["a"]] * 5 + [[]]
    assert encoder.calls["encode"] == 1
    assert sorted(len(order.queries) for order in index.orders) == [1, 5]


async def test_filters_that_python_takes_for_equal_are_searched_apart(pipeline, index):
    index.hold(text={"a": 0.9})
    filters = [Compare("shown", Operator.EQUAL, value) for value in (True, 1)]
    await pipeline.search_batch([search_for(target=TEXT, filter=one) for one in filters], soon())
    assert [repr(order.filter) for order in index.orders] == list(map(repr, filters))


async def test_one_search_of_a_batch_fails_alone(pipeline, index):
    index.hold(text={"a": 0.9})
    good, bad = search_for(target=TEXT), search_for(Content.of(b"no picture"), target=TEXT)
    unknown = Search("unknown", CAT, target=TEXT)
    results = await pipeline.search_batch([good, bad, unknown], soon())
    assert ids_of(results[0]) == ["a"]
    assert [type(one) for one in results[1:]] == [InvalidImage, CollectionNotFound]


async def test_a_defect_that_one_search_meets_fails_that_one_alone(pipeline, index):
    async def read(collection, ids, deadline, most_bytes):
        if collection == "odd":
            raise ZeroDivisionError
        return [index.stored[one] for one in ids], []

    index.hold(text={"a": 0.9})
    index.names["odd"], index.get = "odd", read
    options = {"target": TEXT, "include_content": True}
    searches = [Search("odd", CAT, **options), search_for(**options)]
    results = await pipeline.search_batch(searches, soon())
    assert isinstance(results[0], InternalError)
    assert ids_of(results[1]) == ["a"]


@pytest.mark.parametrize("method", ["encode", "search", "get", "get_collection", "prepare"])
async def test_a_defect_of_a_stage_is_an_error_of_the_searches_it_was_for(pipeline, index, method):
    """The call itself goes on: other searches of a batch have other collections and models."""
    index.hold(text={"a": 0.9})
    index.faults[method] = pipeline._embedder._encoder.faults[method] = ZeroDivisionError()
    search = search_for(target=TEXT, include_content=True)
    (result,) = await pipeline.search_batch([search], soon())
    assert isinstance(result, InternalError)


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


async def test_hits_that_move_up_where_others_were_deleted_come_with_their_content(pipeline, index):
    index.hold(text={f"t{n:02}": 0.9 - n / 100 for n in range(40)})
    for n in range(4):
        del index.stored[f"t{n:02}"]
    search = search_for(target=TEXT, include_content=True, limit=6, rerank=Rerank(20))
    result = await pipeline.search(search, soon())  # there is no judge, but the list is as deep
    assert [hit.content.text for hit in result.hits] == [
        f"the text of t{n:02}" for n in range(4, 10)
    ]


@pytest.mark.parametrize(
    "error",
    [
        LogUnavailable("the log is away"),
        DeadlineExceeded("late"),
        Overloaded("full"),
        DataLoss("a picture is broken"),
    ],
    ids=lambda error: error.reason,
)
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

    async def hang(collection, ids, deadline, most_bytes):
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


async def test_an_attribute_that_no_shard_knows_is_said_once(pipeline, index):
    index.hold(text={"a": 0.9})
    index.unknown = [{"yaer": "year", "prise": ""}, {"yaer": "year"}]
    result = await pipeline.search(search_for(target=TEXT), soon())
    assert [(d.reason, d.message) for d in result.degradations] == [
        ("ATTRIBUTE_UNKNOWN", "no candidate has the attribute 'yaer'; did you mean 'year'?")
    ]


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


@pytest.mark.parametrize("deleted", [1, 5, 20, 39, 40])
async def test_hits_that_move_into_the_depth_of_judging_are_judged_too(
    make_pipeline, index, reranker, deleted
):
    index.hold(text={f"t{n:02}": 0.9 - n / 100 for n in range(40)})
    for n in range(deleted):
        del index.stored[f"t{n:02}"]
    reranker.scores = {f"the text of t{n:02}": n / 100 for n in range(40)}
    search = search_for(target=TEXT, limit=40, rerank=Rerank(20))
    result = await make_pipeline(reranker).search(search, soon())
    judged = [f"t{n:02}" for n in range(deleted, min(deleted + 20, 40))]
    rest = [f"t{n:02}" for n in range(deleted + 20, 40)]
    assert ids_of(result) == [*reversed(judged), *rest]
    assert reasons_of(result) == []


async def test_hits_that_are_deleted_as_fast_as_they_are_read_do_not_fail_the_search(
    make_pipeline, index, reranker
):
    async def read_and_delete(collection, ids, deadline, most_bytes):
        found = [index.stored[one] for one in ids if one in index.stored]
        for number in range(len(index.stored)):
            index.stored.pop(f"t{number:03}", None)
        return found[1:], []

    index.hold(text={f"t{n:03}": 0.9 - n / 1000 for n in range(200)})
    index.get = read_and_delete
    search = search_for(target=TEXT, limit=100, include_content=True)
    result = await make_pipeline(reranker).search(search, soon())
    assert len(ids_of(result)) == len(set(ids_of(result)))


async def test_content_that_was_fetched_to_be_judged_is_not_fetched_again(
    make_pipeline, index, reranker
):
    index.hold(text={"a": 0.9, "b": 0.8})
    search = search_for(target=TEXT, include_content=True)
    result = await make_pipeline(reranker).search(search, soon())
    assert [hit.content.text for hit in result.hits] == ["the text of a", "the text of b"]
    assert index.calls["get"] == 1


async def test_as_many_hits_are_judged_and_come_with_content_as_fit_into_a_message(
    make_pipeline, index, reranker
):
    ids = [f"t{n}" for n in range(6)]
    index.hold(text={one: 0.9 - n / 100 for n, one in enumerate(ids)})
    index.stored = {one: Candidate(one, Content.of(f"{one:>2000}")) for one in ids}
    reranker.scores = {f"{one:>2000}": n / 10 for n, one in enumerate(ids)}
    pipeline = make_pipeline(reranker, max_message_bytes=10_500)
    result = await pipeline.search(search_for(target=TEXT, include_content=True), soon())
    assert ids_of(result) == ["t3", "t2", "t1", "t0", "t4", "t5"]
    assert [hit.rerank_score for hit in result.hits] == [0.3, 0.2, 0.1, 0.0, None, None]
    assert result.receipt.rerank_outcome is RerankOutcome.PARTIAL
    assert [hit.content is not None for hit in result.hits] == [True] * 4 + [False] * 2
    by_reason = {one.reason: one.message for one in result.degradations}
    assert list(by_reason) == ["RERANK_PARTIAL", "CONTENT_UNAVAILABLE"]
    judged = "4 of 6 hits were judged; 2 do not fit into one message with the others"
    assert by_reason["RERANK_PARTIAL"] == judged
    assert by_reason["CONTENT_UNAVAILABLE"].startswith("2 of 6 hits are answered without content")


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


@pytest.mark.parametrize("merge", MergePolicy)
@pytest.mark.parametrize("compares", [True, False])
async def test_a_search_that_asks_is_told_why_its_hits_are_where_they_are(
    make_pipeline, index, reranker, merge, compares
):
    reranker.compares_modalities = compares
    index.hold(text={"a": 0.9, "b": 0.8, "c": 0.7}, image={"x": 0.5, "y": 0.4})
    reranker.scores = {f"the text of {name}": n / 10 for n, name in enumerate("axbyc")}
    search = search_for(merge=merge, explain=True, rerank=Rerank(4))
    result = await make_pipeline(reranker).search(search, soon())
    why = {hit.id: hit.explanation for hit in result.hits}
    assert {one: why[one].list_rank for one in "abcxy"} == {"a": 1, "b": 2, "c": 3, "x": 1, "y": 2}
    assert sorted(one.merge_rank for one in why.values()) == [1, 2, 3, 4, 5]
    by_place = sorted(result.hits, key=lambda hit: hit.explanation.merge_rank)
    assert [hit.explanation.merge_score for hit in by_place] == [hit.score for hit in result.hits]
    for hit in result.hits:
        one = hit.explanation
        assert (one.mixed_score is None) == (hit.rerank_score is None) == (one.judge_weight is None)
        if merge is MergePolicy.CALIBRATED:
            assert one.merge_score == pytest.approx(one.standard_score - one.rank_discount)
    groups = (
        [result.hits]
        if compares
        else [[hit for hit in result.hits if hit.modality is modality] for modality in Modality]
    )
    for group in groups:
        mixed = [h.explanation.mixed_score for h in group if h.explanation.mixed_score is not None]
        assert mixed == sorted(mixed, reverse=True)


async def test_nothing_is_explained_unasked(pipeline, index):
    index.hold(text={"a": 0.9})
    result = await pipeline.search(search_for(), soon())
    assert result.hits[0].explanation is None


async def test_a_judge_that_has_no_say_on_a_query_is_not_passed_over_in_silence(
    make_pipeline, index, reranker
):
    index.hold(text={"a": 0.9, "b": 0.8})
    reranker.query_weights[TEXT] = 0.0
    result = await make_pipeline(reranker).search(search_for(target=TEXT), soon())
    assert (ids_of(result), reasons_of(result)) == (["a", "b"], ["RERANK_SKIPPED"])
    assert "queries of text" in result.degradations[0].message
    assert result.receipt.rerank_outcome is RerankOutcome.SKIPPED
    assert "get" not in index.calls
    unasked = await make_pipeline(reranker).search(search_for(rerank=Rerank(0)), soon())
    assert reasons_of(unasked) == []


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
