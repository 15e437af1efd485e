"""Searches and their answers, in plain Python."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmesh.content import (
    WITH_IMAGE,
    WITH_TEXT,
    Attributes,
    Content,
    Modality,
    check_content,
    check_instruction,
)
from mmesh.errors import InvalidField

if TYPE_CHECKING:
    from mmesh.filters import Filter

MAX_LIMIT, DEFAULT_LIMIT = 1000, 10
MAX_RERANK = 256
MAX_RERANK_S = 3600.0
MAX_IMAGE_TOKENS = 2**31 - 1


class MergePolicy(enum.Enum):
    """Rank fusion: how the lists of modalities become one; see `MergePolicy` in gateway.proto."""

    SCORE = "score"
    CALIBRATED = "calibrated"
    RRF = "rrf"
    INTERLEAVE = "interleave"


class Consistency(enum.Enum):
    """Consistency level of a search: how fresh it must be; see collection.proto."""

    EVENTUAL = "eventual"
    SESSION = "session"
    STRONG = "strong"


class RerankOutcome(enum.Enum):
    """How much was judged."""

    FULL = "full"
    PARTIAL = "partial"
    SKIPPED = "skipped"


TARGETS: Mapping[str, Modality | Collection[Modality] | None] = {
    "any": None,
    **{modality.value: modality for modality in Modality},
    "with_image": WITH_IMAGE,
    "with_text": WITH_TEXT,
}
"""Targets of a search by the names that people give them."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """Budget of second-stage scoring: how many candidates to judge, and what that may cost."""

    candidates: int
    max_seconds: float = 0.0
    """At most an hour; 0 means half of what is left until the deadline."""
    max_image_tokens: int = 0
    """Tokens of pictures that the judge may read, of query and candidates; 0 means any number."""


@dataclass(frozen=True, slots=True)
class Search:
    """One search; what is left out is the mesh's default. See `SearchRequest` in gateway.proto."""

    collection: str
    query: Content
    instruction: str = ""
    target: Modality | Collection[Modality] | None = None
    """Modality of the hits, or several, such as `WITH_IMAGE`."""
    limit: int | None = None
    """1 to 1000; None means 10, or as many as the collection allows."""
    filter: Filter | None = None
    merge: MergePolicy | None = None
    rerank: Rerank | None = None
    consistency: Consistency | None = None
    token: str = ""
    require_all_shards: bool = False
    include_content: bool = False
    explain: bool = False


def check_search(search: Search) -> None:
    """Raise `InvalidField` unless query, instruction, limits and filter are as they must be."""
    check_content(search.query, "query")
    check_instruction(search.instruction)
    targets_of(search.target)
    if search.limit is not None and not 1 <= search.limit <= MAX_LIMIT:
        raise InvalidField("limit", f"is {search.limit}; 1 to {MAX_LIMIT} are allowed")
    if search.filter is not None:
        from mmesh.filters import check_filter

        check_filter(search.filter)
    if search.rerank is not None:
        _check_rerank(search.rerank)


def targets_of(target: Modality | Collection[Modality] | None) -> tuple[Modality, ...]:
    """Return the modalities of a target in their order; none means that it is open.

    Raises:
        InvalidField: it is no modality, or none.
    """
    if target is None:
        return ()
    wanted = {target} if isinstance(target, Modality | str) else set(target)
    if not wanted or not all(isinstance(one, Modality) for one in wanted):
        raise InvalidField("target", f"is {target!r}; give a Modality, several, or None")
    return tuple(modality for modality in Modality if modality in wanted)


def _check_rerank(rerank: Rerank) -> None:
    if not 0 <= rerank.candidates <= MAX_RERANK:
        problem = f"is {rerank.candidates}; 0 to {MAX_RERANK} are allowed"
        raise InvalidField("rerank.candidates", problem)
    if not 0 <= rerank.max_seconds <= MAX_RERANK_S:  # also refuses NaN
        problem = f"is {rerank.max_seconds}; 0 to {MAX_RERANK_S} are allowed"
        raise InvalidField("rerank.max_seconds", problem)
    if not 0 <= rerank.max_image_tokens <= MAX_IMAGE_TOKENS:
        problem = f"is {rerank.max_image_tokens}; 0 to {MAX_IMAGE_TOKENS} are allowed"
        raise InvalidField("rerank.max_image_tokens", problem)


@dataclass(frozen=True, slots=True)
class Explanation:
    """How the place of a hit came about; see `Explanation` in gateway.proto."""

    list_rank: int
    standard_score: float | None
    rank_discount: float
    merge_score: float
    merge_rank: int
    judge_weight: float | None
    mixed_score: float | None
    equals_query: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """A candidate in a result; higher scores are better."""

    id: str
    rank: int
    score: float
    retrieval_score: float
    rerank_score: float | None
    modality: Modality
    attributes: Attributes
    content: Content | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the shards answered."""

    shards_answered: int
    shards_total: int


@dataclass(frozen=True, slots=True)
class Degradation:
    """Graceful degradation: one thing that a search skipped, and why."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Latency of one stage: seconds in the gateway, and of these in the service it called."""

    name: str
    seconds: float
    service_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """Provenance and latencies of an answer; see `Receipt` in gateway.proto."""

    request_id: str
    query_modality: Modality
    searched: tuple[Modality, ...]
    target_source: str
    merge: MergePolicy
    stages: tuple[Stage, ...]
    total_seconds: float
    encoder_batch_size: int
    embedding_cached: bool
    encoder_fingerprint: str
    reranker_fingerprint: str
    reranker_template: str
    rerank_outcome: RerankOutcome
    calibration: str
    gateway_version: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to one search."""

    hits: tuple[Hit, ...]
    coverage: Coverage
    degradations: tuple[Degradation, ...]
    receipt: Receipt
    token: str
