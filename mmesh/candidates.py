"""What goes into a collection and what comes out of a search, in plain Python."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from mmesh.content import Attributes, Content, Modality, check_content, check_id
from mmesh.errors import InvalidField, MmeshError
from mmesh.filters import Filter

MAX_ATTRIBUTES = 64
MAX_STRING_BYTES = 4096
MAX_LIST = 256
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A thing that can be found."""

    id: str
    content: Content
    attributes: Attributes = field(default_factory=dict)


def check_candidate(candidate: Candidate, path: str) -> None:
    """Raise `InvalidField`, naming the part under `path`, unless all of it is within the limits."""
    check_id(candidate.id, f"{path}.id")
    check_content(candidate.content, f"{path}.content")
    check_attributes(candidate.attributes, f"{path}.attributes")


def check_attributes(attributes: Attributes, path: str) -> None:
    """Raise `InvalidField` unless names, number and sizes are within the limits."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidField(path, f"has {len(attributes)} entries; at most {MAX_ATTRIBUTES}")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            raise InvalidField(path, f"has the name {name[:80]!r}; use 1 to 64 of A-Za-z0-9_.-")
        strings = value if isinstance(value, tuple) else (value,)
        if len(strings) > MAX_LIST:
            raise InvalidField(
                f"{path}[{name!r}]", f"has {len(strings)} values; at most {MAX_LIST}"
            )
        if any(isinstance(s, str) and len(s.encode()) > MAX_STRING_BYTES for s in strings):
            raise InvalidField(f"{path}[{name!r}]", f"is over {MAX_STRING_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of candidates that share one model."""

    name: str
    dim: int
    model_fingerprint: str
    candidates: Mapping[Modality, int]
    shards: int
    create_time: datetime
    token: str


class MergePolicy(enum.Enum):
    """How lists of several modalities become one; see `RetrievalService` in protos/."""

    SCORE = "score"
    CALIBRATED = "calibrated"
    RRF = "rrf"
    INTERLEAVE = "interleave"


class Consistency(enum.Enum):
    """How fresh a search must be."""

    EVENTUAL = "eventual"
    SESSION = "session"
    STRONG = "strong"


class RerankOutcome(enum.Enum):
    """How much was judged."""

    FULL = "full"
    PARTIAL = "partial"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Rerank:
    """How many candidates to judge, for how many seconds (0: half of what is left)."""

    candidates: int
    max_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Search:
    """One search; what is left out is the mesh's default."""

    collection: str
    query: Content
    instruction: str = ""
    target: Modality | None = None
    limit: int = 10
    filter: Filter | None = None
    merge: MergePolicy | None = None
    rerank: Rerank | None = None
    consistency: Consistency | None = None
    token: str = ""
    require_all_shards: bool = False
    include_content: bool = False


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


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the shards answered."""

    shards_answered: int
    shards_total: int


@dataclass(frozen=True, slots=True)
class Degradation:
    """One thing that a search skipped, and why."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Seconds of one stage in the gateway, and inside the service that it called."""

    name: str
    seconds: float
    service_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """How an answer was made."""

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


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that an ingest refused, and why."""

    id: str
    error: MmeshError


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of an ingest; `token` names its last write."""

    stored: int
    rejected: tuple[Rejected, ...]
    token: str


@dataclass(frozen=True, slots=True)
class Page:
    """Candidates of a listing; `next_token` is empty on the last page."""

    candidates: tuple[Candidate, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Whether a service of the mesh answers, and what it serves."""

    name: str
    serving: bool
    detail: str


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The services of a mesh."""

    services: tuple[ServiceStatus, ...]
    version: str
