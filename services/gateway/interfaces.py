"""Interfaces (ports) of the other services: what searches and writes need, not how it is called.

The implementations over gRPC are in `encoder_backend`, `index_backend` and `reranker_backend`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mmesh.candidates import Candidate
from mmesh.collections import Collection
from mmesh.content import Attributes, Content, Modality, Role
from mmesh.errors import Cancelled, DeadlineExceeded, MmeshError, ResourceExhausted, Unavailable
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from mmesh.vectors import FloatMatrix

PASSING = (Unavailable, DeadlineExceeded, ResourceExhausted, Cancelled)
"""Errors of a service that are not about the request: the same may succeed later or elsewhere."""


MOST_HITS_HERE = 4096
"""Hits that are read or joined on the event loop: it takes some milliseconds."""


@dataclass(frozen=True, slots=True)
class ReferenceRows:
    """A model's reference pool in one modality: row i shows thing i, whatever the modality."""

    queries: FloatMatrix
    candidates: FloatMatrix

    @classmethod
    def of(cls, queries: FloatMatrix, candidates: FloatMatrix | None = None) -> ReferenceRows:
        """Return the rows; without candidates the model reads both roles alike."""
        return cls(queries, queries if candidates is None else candidates)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the gateway knows of an encoder's model."""

    name: str
    fingerprint: str
    dim: int
    reference: Mapping[Modality, ReferenceRows]
    modalities: frozenset[Modality] = frozenset(Modality)
    """What this encoder reads, which may be less than others of the same fingerprint do."""
    max_text_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors (n, dim) of n candidates, and the model that made them."""

    rows: FloatMatrix
    fingerprint: str


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Unit rows (n, dim) with the inputs that could not be encoded or were cut, by number.

    The row of an input that could not be encoded is all zeros.
    """

    vectors: FloatMatrix
    fingerprint: str
    problems: Mapping[int, MmeshError]
    truncated: frozenset[int]
    batch_size: int
    service_s: float
    notices: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """What else should be known of inputs that were encoded."""
    max_text_tokens: int = 0
    """Tokens after which texts were cut; 0 where that is not known."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate as a shard found it."""

    id: str
    modality: Modality
    retrieval_score: float
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class ShardAnswer:
    """Hits by query and modality, in the order of the search's."""

    lists: list[list[list[Scored]]]
    token: Token
    """The state of the log that was searched."""
    service_s: float
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Attributes in the filter that no candidate has, and which may have been meant."""


Weights = Mapping[Modality, float]
"""Share of the judge's score by candidate modality, 0..1."""


@dataclass(frozen=True, slots=True)
class Judge:
    """How far a judge is to be trusted, by query modality."""

    weights: Mapping[Modality, Weights]
    compares_modalities: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said: a score for each candidate in order, or None where it gave none."""

    scores: Sequence[float | None]
    fingerprint: str
    template: str
    service_s: float


class Encoder(Protocol):
    """Turns content into unit vectors of the models that the mesh serves."""

    async def model(self, fingerprint: str, deadline: Deadline) -> ServedModel:
        """Return a model that is served.

        Raises:
            ModelMismatch: no encoder serves it.
        """

    async def encode(
        self,
        fingerprint: str,
        inputs: Sequence[tuple[Content, str]],
        role: Role,
        deadline: Deadline,
    ) -> EncodedBatch:
        """Encode (content, instruction) pairs with a model; queries go before bulk work.

        Raises:
            ModelMismatch: no encoder serves it.
        """


class ShardSearch(Protocol):
    """One search of one shard set: whatever happens to the mesh meanwhile, the set stays."""

    @property
    def shard_count(self) -> int:
        """Shards of the set; 0 when no index process has been heard of."""

    async def search(self, shard: int, deadline: Deadline) -> ShardAnswer:
        """Search one shard."""


class Index(Protocol):
    """Stores candidates, and searches them shard by shard."""

    async def prepare(self, order: VectorSearch, deadline: Deadline) -> ShardSearch:
        """Return a search of the shard set that is in use now."""

    async def get_collection(self, name: str, deadline: Deadline) -> Collection:
        """Return the collection that a name or an alias stands for."""

    async def get(
        self, collection: str, ids: Sequence[str], deadline: Deadline, most_bytes: int
    ) -> tuple[list[Candidate], list[str]]:
        """Return the first candidates that exist, with content, and the ids of those left out.

        As many as fit into `most_bytes`, and one at least.
        """

    async def upsert(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: Embeddings,
        request_id: str,
        deadline: Deadline,
        *,
        mirror: Embeddings | None = None,
        fill: bool = False,
    ) -> str:
        """Store candidates durably, all or none; return the token.

        `mirror` has vectors for the collection's mirror. With `fill` only candidates are stored
        that the collection lacks and its mirror has.
        """


class Reranker(Protocol):
    """Judges how well candidates answer a query."""

    async def judge(self, deadline: Deadline) -> Judge:
        """Return how far the judge is to be trusted; remembered until another one answers."""

    async def rerank(
        self,
        query: Content,
        instruction: str,
        candidates: Sequence[Content],
        deadline: Deadline,
        max_image_tokens: int = 0,
    ) -> Verdict:
        """Return what the judge says of `candidates` in time, and for these image tokens."""
