"""Results as JSON, in the form that scripts read."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

from mmesh.values.timestamps import format_timestamp

if TYPE_CHECKING:
    from mmesh.collections import Collection
    from mmesh.content import Attributes
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
                "id": hit.id,
                "rank": hit.rank,
                "score": hit.score,
                "retrieval_score": hit.retrieval_score,
                "rerank_score": hit.rerank_score,
                "modality": hit.modality.value,
                "attributes": attributes_row(hit.attributes),
            }
            | ({"explanation": asdict(hit.explanation)} if hit.explanation else {})
            for hit in result.hits
        ],
        "coverage": asdict(result.coverage),
        "degradations": [asdict(degradation) for degradation in result.degradations],
        "receipt": receipt,
        "token": result.token,
    }


def attributes_row(attributes: Attributes) -> dict[str, Any]:
    """Return attributes as JSON values; moments are RFC 3339."""
    return {
        name: format_timestamp(value) if isinstance(value, date) else value
        for name, value in attributes.items()
    }


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
        "attributes": {
            one.name: {"type": one.type and one.type.value, "count": one.count}
            for one in collection.attributes
        },
    }
