"""The state of one search under way: what is known of it so far, and where its time went."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import DeadlineExceeded, InternalError, MmeshError
from mmesh.search import (
    DEFAULT_LIMIT,
    Coverage,
    Degradation,
    MergePolicy,
    RerankOutcome,
    Search,
    SearchResult,
    Stage,
)
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vectors import FloatMatrix
from services.gateway.interfaces import Scored, Verdict
from services.gateway.search.calibration import Calibration
from services.gateway.search.plan import Plan
from services.gateway.search.ranking import Ranked

logger = logging.getLogger(__name__)

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
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

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
    notices: frozenset[str] = frozenset()


@dataclass(slots=True)
class Run:
    """One search under way; each stage of the pipeline fills in its part."""

    search: Search
    deadline: Deadline
    depth: int
    """Hits to be judged."""
    merge: MergePolicy
    caller: str = ""
    """Whose turns it takes."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    plan: Plan = field(default_factory=lambda: Plan((), ""))
    collection: str = ""
    """Name of the collection itself, where the search may give an alias."""
    model: str = ""
    """Fingerprint of its model."""
    default_limit: int = DEFAULT_LIMIT
    """Hits that are answered where the search does not say it."""
    embedding: QueryEmbedding | None = None
    lists: Mapping[Modality, Sequence[Scored]] = field(default_factory=dict)
    coverage: Coverage = NOTHING_COVERED
    token: Token = NOTHING_SEEN
    """The state of the log that was searched."""
    calibration: Calibration | None = None
    ranked: list[Ranked] = field(default_factory=list)
    contents: dict[str, Content] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    """Ids of candidates whose content is not whole."""
    verdict: Verdict | None = None
    outcome: RerankOutcome = RerankOutcome.SKIPPED
    degradations: list[Degradation] = field(default_factory=list)
    result: SearchResult | None = None
    error: MmeshError | None = None

    @property
    def limit(self) -> int:
        """Hits that are answered."""
        return self.search.limit or self.default_limit

    @property
    def list_limit(self) -> int:
        """Hits that each list must have, so that merging and judging lack none."""
        return max(self.limit, self.depth)

    def has_content(self, place: int) -> bool:
        """Whether the content of the hit at this place is known."""
        return self.ranked[place].hit.id in self.contents

    def is_fetched(self, candidate_id: str) -> bool:
        """Whether the content of a hit is known, or known not to be whole."""
        return candidate_id in self.contents or candidate_id in self.lost

    def take(self, found: Sequence[Candidate]) -> None:
        """Take the content of candidates, and note those of which a picture is lost."""
        for one in found:
            if one.problem is None:
                self.contents[one.id] = one.content
            else:
                self.lost.add(one.id)
                problem = f"that of {one.id!r} is not whole: {one.problem.message}"
                self.degrade("CONTENT_UNAVAILABLE", problem)

    def degrade(self, reason: str, message: str) -> None:
        """Note that something was skipped; once for each way of saying it."""
        degradation = Degradation(reason, message)
        if degradation not in self.degradations:
            self.degradations.append(degradation)


async def guarded(runs: Iterable[Run], work: Awaitable[None]) -> None:
    """Do the work of some runs; whatever it fails with is their error and no one else's.

    So a defect that one search meets does not fail the batch that it travels in.
    """
    error: MmeshError
    try:
        await work
        return
    except MmeshError as known:
        error = known
    except TimeoutError:
        error = DeadlineExceeded("the deadline passed before the work was done")
    except Exception:
        logger.exception("a search failed")
        hint = f"a defect of mmesh; the logs have it under request id {logs.request_id.get()}"
        error = InternalError(hint)
    for run in runs:
        run.error = error
