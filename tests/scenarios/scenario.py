"""What must come of each fault: who is told, and what callers see while it lasts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tests.scenarios import faults
from tests.scenarios.load import WHOLE, WRITTEN, degraded, failed

EACH_SEARCH, EACH_WRITE = ("known", "new", "reranked"), ("text", "picture")


@dataclass(frozen=True)
class Scenario:
    """A fault and its consequences."""

    name: str
    fault: faults.Fault
    must: frozenset[str] = frozenset()
    """Alerts that must come, and end after the mend."""
    may: frozenset[str] = frozenset()
    """Alerts that come when it lasts; all others must stay silent."""
    says: Mapping[str, Collection[str]] = field(default_factory=dict)
    """What calls say, by kind, where it is not that all is well."""
    tickets_count: bool = True
    """False: of what must stay silent only pages are looked at."""
    is_over_at_once: bool = False
    """True: nothing is broken once the fault has begun."""

    def answers(self, kind: str) -> set[str]:
        """Return the outcomes that calls of a kind may have."""
        return set(self.says.get(kind, {WHOLE if kind in EACH_SEARCH else WRITTEN}))


SCENARIOS = [
    Scenario(
        "a replica of a shard is killed",
        faults.dead_replica,
        must=frozenset({"MmeshShardNotReplicated", "MmeshTargetDown"}),
    ),
    Scenario(
        "all replicas of a shard are killed",
        faults.dead_shard,
        must=frozenset(
            {
                "MmeshNoShardSet",
                "MmeshCoverageIncomplete",
                "MmeshCoverageBudgetBurnsFast",
                "MmeshTargetDown",
            }
        ),
        says={kind: {degraded("SHARD_UNAVAILABLE")} for kind in EACH_SEARCH},
    ),
    Scenario(
        "PostgreSQL is stopped",
        faults.stopped_database,
        must=frozenset({"MmeshLogUnavailable"}),
        may=frozenset({"MmeshRerankerAway"}),  # what is judged is read from the log
        says={
            "reranked": {degraded("CONTENT_UNAVAILABLE", "RERANK_UNAVAILABLE")},
            "text": {failed("LOG_UNAVAILABLE")},
            "picture": {failed("LOG_UNAVAILABLE")},
        },
    ),
    Scenario(
        "the disk of the log is full",
        faults.full_disk,
        must=frozenset({"MmeshStorageFull"}),
        says={kind: {failed("STORAGE_FULL"), WRITTEN} for kind in EACH_WRITE},
    ),
    Scenario(
        "the encoders stall",
        faults.stalled_encoders,
        must=frozenset({"MmeshAvailabilityBudgetBurnsFast", "MmeshServiceGone", "MmeshTargetDown"}),
        may=frozenset({"MmeshDemandUnknown"}),
        says={kind: {failed("DEADLINE"), failed("UNAVAILABLE")} for kind in ("new", *EACH_WRITE)},
    ),
    Scenario(
        "the judges stall",
        faults.stalled_judges,
        must=frozenset({"MmeshRerankerAway", "MmeshTargetDown"}),
        says={"reranked": {degraded("RERANK_UNAVAILABLE")}},
    ),
    Scenario(
        "S3 is away: no snapshot and no picture can be stored",
        faults.no_store,
        must=frozenset({"MmeshSnapshotFails", "MmeshLogUnavailable"}),
        says={"picture": {failed("LOG_UNAVAILABLE"), failed("DEADLINE")}},
    ),
    Scenario(
        "four times as many searches as are admitted",
        faults.overload,
        must=frozenset({"MmeshQueueFull", "MmeshAvailabilityBudgetBurnsFast"}),
        says={kind: {WHOLE, failed("QUEUE_FULL")} for kind in EACH_SEARCH},
    ),
    Scenario(
        "all processes are restarted, one after another",
        faults.rolling_restart,
        tickets_count=False,
        is_over_at_once=True,
    ),
]
