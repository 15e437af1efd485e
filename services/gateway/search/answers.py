"""What a search answers with: its hits, and the receipt of how they came about."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from mmesh.search import Hit, Receipt, SearchResult
from mmesh.serving import logs
from services.gateway.search.explain import explainer
from services.gateway.search.run import Run

VERSION = version("mmesh")


def answer_of(run: Run) -> SearchResult:
    """Return the answer of a run that has its hits in their order."""
    hits = tuple(_hits(run))
    run.watch.lap("answer")
    receipt = _receipt(run)
    return SearchResult(hits, run.coverage, tuple(run.degradations), receipt, str(run.token))


def _hits(run: Run) -> Iterator[Hit]:
    search, explain = run.search, None
    if search.explain:
        explain = explainer(
            run.lists, run.merge, run.calibration, run.list_limit, search.query.modality
        )
    for rank, entry in enumerate(run.ranked[: run.limit], start=1):
        hit = entry.hit
        yield Hit(
            hit.id,
            rank,
            entry.score,
            hit.retrieval_score,
            entry.rerank_score,
            hit.modality,
            hit.attributes,
            run.contents.get(hit.id) if search.include_content else None,
            explain(entry) if explain else None,
        )


def _receipt(run: Run) -> Receipt:
    embedding, verdict = run.embedding, run.verdict
    assert embedding is not None
    return Receipt(
        request_id=logs.request_id.get(),
        query_modality=run.search.query.modality,
        searched=run.plan.modalities,
        target_source=run.plan.source,
        merge=run.merge,
        stages=tuple(run.watch.stages),
        total_seconds=run.watch.total_s,
        encoder_batch_size=embedding.batch_size,
        embedding_cached=embedding.cached,
        encoder_fingerprint=embedding.fingerprint,
        reranker_fingerprint=verdict.fingerprint if verdict else "",
        reranker_template=verdict.template if verdict else "",
        rerank_outcome=run.outcome,
        calibration=run.calibration.version if run.calibration else "",
        gateway_version=VERSION,
    )
