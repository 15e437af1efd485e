"""What goes into a collection and what comes out of a search, in plain Python."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmesh.content import (
    Attributes,
    AttributeValue,
    Content,
    Modality,
    check_content,
    check_id,
    check_instruction,
)
from mmesh.errors import InvalidField, InvalidVector, MmeshError
from mmesh.filters import MAX_DEPTH, Filter, check_filter
from mmesh.vectors import FloatMatrix

MAX_LIMIT = 1000
MAX_RERANK = 256
MAX_RERANK_S = 3600.0
MAX_IMAGE_TOKENS = 2**31 - 1
MAX_ATTRIBUTES = 64
MAX_STRING_BYTES = 4096
MAX_LIST = 256
MAX_FACTORY_BYTES = 256
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A thing that can be found."""

    id: str
    content: Content
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A candidate with a vector that the model of its collection made of it elsewhere."""

    candidate: Candidate
    vector: NDArray[Any]
    """(dim,) numbers of any length but zero; int8 stands for value / 127."""


def check_candidate(candidate: Candidate, path: str) -> None:
    """Raise `InvalidField`, naming the part under `path`, unless all of it is within the limits."""
    check_id(candidate.id, f"{path}.id")
    check_content(candidate.content, f"{path}.content")
    check_attributes(candidate.attributes, f"{path}.attributes")


def check_vectors(vectors: NDArray[Any], count: int, path: str = "vectors") -> None:
    """Raise `InvalidField` unless `vectors` is (count, dim), and `InvalidVector` for a bad row."""
    if vectors.ndim != 2 or len(vectors) != count:
        problem = f"has the shape {vectors.shape}; one row for each of {count} candidates is due"
        raise InvalidField(path, problem)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InvalidVector(f"{path}[{int(bad.argmax())}]", "is not finite")


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
        for single in strings:
            _check_value(single, f"{path}[{name!r}]")


def _check_value(value: AttributeValue, path: str) -> None:
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            problem = "holds a lone surrogate, which is not valid Unicode"
            raise InvalidField(path, problem) from None
        if size > MAX_STRING_BYTES:
            raise InvalidField(path, f"is {size} bytes; at most {MAX_STRING_BYTES} are allowed")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidField(path, "is not finite")
    elif not isinstance(value, int):
        raise InvalidField(path, f"is of type {type(value).__name__}, which is not known")
    elif not -(2**63) <= value < 2**63:
        raise InvalidField(path, "does not fit into 64 bits")


@dataclass(frozen=True, slots=True)
class CollectionLimits:
    """What a collection may hold and be asked; 0 means the default. See `collection.proto`."""

    max_candidates: int = 0
    max_candidate_bytes: int = 0
    max_attributes: int = 0
    max_filter_depth: int = 0
    max_limit: int = 0


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """How a collection is indexed and what it may hold; see `collection.proto`."""

    index_factory: str = ""
    recall_target: float = 0.0
    limits: CollectionLimits = field(default_factory=CollectionLimits)
    mirror: str = ""


def check_settings(settings: CollectionSettings, path: str = "settings") -> None:
    """Raise `InvalidField`, naming the setting under `path`, unless all are within bounds.

    Whether `index_factory` can be built is for the index to say.
    """
    factory = settings.index_factory
    if len(factory.encode()) > MAX_FACTORY_BYTES or (factory and not factory.isprintable()):
        problem = f"must be at most {MAX_FACTORY_BYTES} bytes that can be printed"
        raise InvalidField(f"{path}.index_factory", problem)
    recall = settings.recall_target
    if recall and not 0.5 <= recall <= 1:  # also refuses NaN
        raise InvalidField(f"{path}.recall_target", f"is {recall}; 0, or 0.5 to 1, is allowed")
    for name, most in _GREATEST.items():
        value = getattr(settings.limits, name)
        if not 0 <= value <= most:
            problem = f"is {value}; 0 to {most} are allowed"
            raise InvalidField(f"{path}.limits.{name}", problem)


_GREATEST = {
    "max_candidates": 2**63 - 1,
    "max_candidate_bytes": 2**63 - 1,
    "max_attributes": MAX_ATTRIBUTES,
    "max_filter_depth": MAX_DEPTH,
    "max_limit": MAX_LIMIT,
}


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
    settings: CollectionSettings = field(default_factory=CollectionSettings)
    aliases: tuple[str, ...] = ()


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
    """How many candidates to judge, and what that may cost."""

    candidates: int
    max_seconds: float = 0.0
    """0 means half of what is left until the deadline."""
    max_image_tokens: int = 0
    """Tokens of pictures that the judge may read, of query and candidates; 0 means any number."""


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


def check_search(search: Search) -> None:
    """Raise `InvalidField` unless query, instruction, limits and filter are as they must be."""
    check_content(search.query, "query")
    check_instruction(search.instruction)
    if not 1 <= search.limit <= MAX_LIMIT:
        raise InvalidField("limit", f"is {search.limit}; 1 to {MAX_LIMIT} are allowed")
    if search.filter is not None:
        check_filter(search.filter)
    if search.rerank is not None:
        _check_rerank(search.rerank)


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
    vectors: FloatMatrix | None = field(default=None, repr=False, compare=False)
    """Unit rows (n, dim), one for each candidate; None unless asked for."""
    model_fingerprint: str = ""
    """Model of the vectors."""


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
