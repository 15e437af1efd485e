"""Searches and their answers to protobuf and back; both ends of the public API use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, cast

from mmesh import wire
from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.search import (
    MAX_RERANK_S,
    Coverage,
    Degradation,
    Explanation,
    Hit,
    MergePolicy,
    Receipt,
    Rerank,
    RerankOutcome,
    Search,
    SearchResult,
    Stage,
    check_search,
    targets_of,
)
from mmesh.wire.times import duration_to_pb, seconds_from_pb

if TYPE_CHECKING:
    from mmesh.filters import Filter

_Optional = Literal["standard_score", "judge_weight", "mixed_score"]
_MERGES = {
    MergePolicy.SCORE: pb.MERGE_POLICY_SCORE,
    MergePolicy.CALIBRATED: pb.MERGE_POLICY_CALIBRATED,
    MergePolicy.RRF: pb.MERGE_POLICY_RRF,
    MergePolicy.INTERLEAVE: pb.MERGE_POLICY_INTERLEAVE,
}
_OUTCOMES = {
    RerankOutcome.FULL: pb.RERANK_OUTCOME_FULL,
    RerankOutcome.PARTIAL: pb.RERANK_OUTCOME_PARTIAL,
    RerankOutcome.SKIPPED: pb.RERANK_OUTCOME_SKIPPED,
}
_MERGE_OF, _OUTCOME_OF = wire.by_number(_MERGES), wire.by_number(_OUTCOMES)


def search_to_pb(search: Search) -> pb.SearchRequest:
    """Return the message of `search`."""
    targets = targets_of(search.target)
    return pb.SearchRequest(
        collection=search.collection,
        query=wire.content_to_pb(search.query),
        instruction=search.instruction,
        target=wire.modality_to_pb(targets[0] if len(targets) == 1 else None),
        targets=map(wire.modality_to_pb, targets if len(targets) > 1 else ()),
        limit=search.limit,
        filter=wire.filter_to_pb(search.filter) if search.filter else None,
        merge=_MERGES[search.merge] if search.merge else pb.MERGE_POLICY_UNSPECIFIED,
        rerank=_rerank_to_pb(search.rerank) if search.rerank else None,
        consistency=wire.consistency_to_pb(search.consistency),
        token=search.token,
        require_all_shards=search.require_all_shards,
        include_content=search.include_content,
        explain=search.explain,
    )


def search_from_pb(
    message: pb.SearchRequest, filter_of: Callable[[filter_pb2.Filter], Filter] | None = None
) -> Search:
    """Return the search of `message`, checked; `filter_of` reads its filter.

    Raises:
        InvalidField: a field is outside its limits.
    """
    read = filter_of or wire.filter_from_pb
    search = Search(
        collection=message.collection,
        query=wire.content_from_pb(message.query, "query"),
        instruction=message.instruction,
        target=_target_from_pb(message),
        limit=message.limit if message.HasField("limit") else None,
        filter=read(message.filter) if message.HasField("filter") else None,
        merge=cast("MergePolicy | None", wire.enum_from_pb(_MERGE_OF, message.merge, "merge")),
        rerank=_rerank_from_pb(message.rerank) if message.HasField("rerank") else None,
        consistency=wire.consistency_from_pb(message.consistency),
        token=message.token,
        require_all_shards=message.require_all_shards,
        include_content=message.include_content,
        explain=message.explain,
    )
    check_search(search)
    return search


def _target_from_pb(message: pb.SearchRequest) -> Modality | frozenset[Modality] | None:
    target = wire.modality_from_pb(message.target, "target")
    if not message.targets:
        return target
    if target is not None:
        raise InvalidField("targets", "goes without `target`")
    if len(message.targets) > len(Modality):
        problem = f"has {len(message.targets)} entries; at most {len(Modality)}"
        raise InvalidField("targets", problem)
    wanted = {wire.modality_from_pb(one, "targets") for one in message.targets}
    if None in wanted:
        raise InvalidField("targets", "has an unspecified modality")
    return frozenset(one for one in wanted if one is not None)


def _rerank_to_pb(rerank: Rerank) -> pb.RerankOptions:
    return pb.RerankOptions(
        candidates=rerank.candidates,
        max_duration=duration_to_pb(rerank.max_seconds, "rerank.max_seconds"),
        max_image_tokens=rerank.max_image_tokens,
    )


def _rerank_from_pb(message: pb.RerankOptions) -> Rerank:
    max_seconds = seconds_from_pb(message.max_duration, "rerank.max_duration", MAX_RERANK_S)
    return Rerank(message.candidates, max_seconds, message.max_image_tokens)


def result_to_pb(result: SearchResult) -> pb.SearchResponse:
    """Return the message of `result`."""
    return pb.SearchResponse(
        hits=[_hit_to_pb(hit) for hit in result.hits],
        coverage=pb.Coverage(
            shards_answered=result.coverage.shards_answered,
            shards_total=result.coverage.shards_total,
        ),
        degradations=[
            pb.Degradation(reason=d.reason, message=d.message) for d in result.degradations
        ],
        receipt=_receipt_to_pb(result.receipt),
        token=result.token,
    )


def _hit_to_pb(hit: Hit) -> pb.Hit:
    message = pb.Hit(
        id=hit.id,
        rank=hit.rank,
        score=hit.score,
        retrieval_score=hit.retrieval_score,
        rerank_score=hit.rerank_score,
        modality=wire.modality_to_pb(hit.modality),
        content=wire.content_to_pb(hit.content) if hit.content else None,
        explanation=pb.Explanation(**asdict(hit.explanation)) if hit.explanation else None,
    )
    wire.attributes_to_pb(hit.attributes, message.attributes)
    return message


def _receipt_to_pb(receipt: Receipt) -> pb.Receipt:
    return pb.Receipt(
        request_id=receipt.request_id,
        query_modality=wire.modality_to_pb(receipt.query_modality),
        searched=[wire.modality_to_pb(modality) for modality in receipt.searched],
        target_source=receipt.target_source,
        merge=_MERGES[receipt.merge],
        stages=[
            pb.Stage(name=s.name, seconds=s.seconds, service_seconds=s.service_seconds)
            for s in receipt.stages
        ],
        total_seconds=receipt.total_seconds,
        encoder_batch_size=receipt.encoder_batch_size,
        embedding_cached=receipt.embedding_cached,
        encoder_fingerprint=receipt.encoder_fingerprint,
        reranker_fingerprint=receipt.reranker_fingerprint,
        reranker_template=receipt.reranker_template,
        rerank_outcome=_OUTCOMES[receipt.rerank_outcome],
        calibration=receipt.calibration,
        gateway_version=receipt.gateway_version,
    )


def result_from_pb(message: pb.SearchResponse) -> SearchResult:
    """Return the result of `message`."""
    return SearchResult(
        hits=tuple(_hit_from_pb(hit) for hit in message.hits),
        coverage=Coverage(message.coverage.shards_answered, message.coverage.shards_total),
        degradations=tuple(Degradation(d.reason, d.message) for d in message.degradations),
        receipt=_receipt_from_pb(message.receipt),
        token=message.token,
    )


def _hit_from_pb(message: pb.Hit) -> Hit:
    return Hit(
        id=message.id,
        rank=message.rank,
        score=message.score,
        retrieval_score=message.retrieval_score,
        rerank_score=message.rerank_score if message.HasField("rerank_score") else None,
        modality=_modality(message.modality),
        attributes=wire.attributes_from_pb(message.attributes),
        content=wire.content_from_pb(message.content) if message.HasField("content") else None,
        explanation=(
            _explanation_from_pb(message.explanation) if message.HasField("explanation") else None
        ),
    )


def _explanation_from_pb(message: pb.Explanation) -> Explanation:
    def given(name: _Optional) -> float | None:
        value: float = getattr(message, name)
        return value if message.HasField(name) else None

    return Explanation(
        list_rank=message.list_rank,
        standard_score=given("standard_score"),
        rank_discount=message.rank_discount,
        merge_score=message.merge_score,
        merge_rank=message.merge_rank,
        judge_weight=given("judge_weight"),
        mixed_score=given("mixed_score"),
        equals_query=message.equals_query,
    )


def _receipt_from_pb(message: pb.Receipt) -> Receipt:
    def known(table: dict[Any, Any], value: int, default: Any) -> Any:
        return wire.enum_from_pb(table, value, "receipt") or default

    return Receipt(
        request_id=message.request_id,
        query_modality=_modality(message.query_modality),
        searched=tuple(_modality(value) for value in message.searched),
        target_source=message.target_source,
        merge=known(_MERGE_OF, message.merge, MergePolicy.SCORE),
        stages=tuple(Stage(s.name, s.seconds, s.service_seconds) for s in message.stages),
        total_seconds=message.total_seconds,
        encoder_batch_size=message.encoder_batch_size,
        embedding_cached=message.embedding_cached,
        encoder_fingerprint=message.encoder_fingerprint,
        reranker_fingerprint=message.reranker_fingerprint,
        reranker_template=message.reranker_template,
        rerank_outcome=known(_OUTCOME_OF, message.rerank_outcome, RerankOutcome.SKIPPED),
        calibration=message.calibration,
        gateway_version=message.gateway_version,
    )


def _modality(value: int) -> Modality:
    return wire.modality_from_pb(value) or Modality.TEXT
