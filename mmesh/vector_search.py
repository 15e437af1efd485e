"""Vector searches: what gateways ask shards for, on both sides of the call."""

from __future__ import annotations

from dataclasses import dataclass

from mmesh.content import Modality
from mmesh.filters import Filter
from mmesh.search import Consistency
from mmesh.vectors import FloatMatrix


@dataclass(frozen=True, slots=True, eq=False)
class VectorSearch:
    """A search of one shard: the nearest candidates of each modality to each query."""

    collection: str
    queries: FloatMatrix
    """Rows (m, dim); their lengths do not matter."""
    model_fingerprint: str
    """Model of the queries, which must be that of the collection."""
    modalities: tuple[Modality, ...]
    limit: int
    """Hits for each query and modality."""
    filter: Filter | None
    consistency: Consistency
    token: str
