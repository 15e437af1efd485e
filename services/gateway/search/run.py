"""The state of one search under way: what is known of it so far, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmesh.content import Content, Modality
from mmesh.errors import MmeshError
from mmesh.search import (
    Coverage,
    Degradation,
    MergePolicy,
    RerankOutcome,
    Search,
    SearchResult,
    Stage,
)
from mmesh.serving.deadline import Deadline
from mmesh.tokens import Token
from mmesh.vectors import FloatMatrix
from services.gateway.interfaces import Scored, Verdict
from services.gateway.search.calibration import Calibration
from services.gateway.search.plan import Plan
from services.gateway.search.ranking import Ranked

NOTHING_COVERED, NOTHING_SEEN = Coverage(0, 0), Token("", 0)


class Stopwatch:
    """Times stages that follow each other without gaps."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.stages: list[Stage] = []

    def lap(self, name: str, service_s: float = 0.0) -> None:
        """End the stage `name`; `service_s` of it went by inside the service that it called."""
        now = time.perf_counter()
        self.stages.append(Stage(name, now - self._last, service_s))
        self._last = now

    @property
    def total_s(self) -> float:
        """Seconds from the start to the end of the last stage."""
        return self._last - self._start


@dataclass(frozen=True, slots=True)
class QueryEmbedding:
    """The unit vector (dim,) of a query, and how it came about."""

    vector: FloatMatrix
    fingerprint: str
    truncated: bool
    batch_size: int
    cached: bool


@dataclass(slots=True)
class Run:
    """One search under way; each stage of the pipeline fills in its part."""

    search: Search
    deadline: Deadline
    depth: int
    """Hits to be judged."""
    merge: MergePolicy
    watch: Stopwatch = field(default_factory=Stopwatch)
    plan: Plan = field(default_factory=lambda: Plan((), ""))
    collection: str = ""
    """Name of the collection itself, where the search may give an alias."""
    model: str = ""
    """Fingerprint of its model."""
    embedding: QueryEmbedding | None = None
    lists: Mapping[Modality, Sequence[Scored]] = field(default_factory=dict)
    coverage: Coverage = NOTHING_COVERED
    token: Token = NOTHING_SEEN
    """The state of the log that was searched."""
    calibration: Calibration | None = None
    ranked: list[Ranked] = field(default_factory=list)
    contents: dict[str, Content] = field(default_factory=dict)
    verdict: Verdict | None = None
    outcome: RerankOutcome = RerankOutcome.SKIPPED
    degradations: list[Degradation] = field(default_factory=list)
    result: SearchResult | None = None
    error: MmeshError | None = None

    @property
    def list_limit(self) -> int:
        """Hits that each list must have, so that merging and judging lack none."""
        return max(self.search.limit, self.depth)

    def degrade(self, reason: str, message: str) -> None:
        """Note that something was skipped; once for each way of saying it."""
        degradation = Degradation(reason, message)
        if degradation not in self.degradations:
            self.degradations.append(degradation)
