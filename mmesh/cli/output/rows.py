"""Results as JSON, in the form that scripts read."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmesh.collections import Collection
    from mmesh.errors import MmeshError
    from mmesh.search import SearchResult


def result_row(result: SearchResult) -> dict[str, Any]:
    """Return a search result as JSON values."""
    receipt = asdict(result.receipt)
    receipt["query_modality"] = result.receipt.query_modality.value
    receipt["searched"] = [modality.value for modality in result.receipt.searched]
    receipt["merge"] = result.receipt.merge.value
    receipt["rerank_outcome"] = result.receipt.rerank_outcome.value
    return {
        "hits": [
            {
                "id": hit.id, "rank": hit.rank, "score": hit.score,
                "retrieval_score": hit.retrieval_score, "rerank_score": hit.rerank_score,
                "modality": hit.modality.value, "attributes": dict(hit.attributes),
            }
            for hit in result.hits
        ],
        "coverage": asdict(result.coverage),
        "degradations": [asdict(degradation) for degradation in result.degradations],
        "receipt": receipt,
        "token": result.token,
    }  # fmt: skip


def error_row(error: MmeshError) -> dict[str, Any]:
    """Return an error as JSON values."""
    return {"error": {"reason": error.reason, "message": error.message, "metadata": error.metadata}}


def collection_row(collection: Collection) -> dict[str, Any]:
    """Return a collection as JSON values."""
    return {
        "name": collection.name,
        "candidates": {m.value: count for m, count in collection.candidates.items()},
        "shards": collection.shards,
        "dim": collection.dim,
        "model_fingerprint": collection.model_fingerprint,
        "create_time": collection.create_time.isoformat(),
        "token": collection.token,
        "aliases": list(collection.aliases),
        "settings": asdict(collection.settings),
    }
