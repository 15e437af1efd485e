"""How an evaluation is run."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from mmesh.evaluation.datasets.dataset import Dataset, Task
from mmesh.evaluation.metrics import depth
from mmesh.search import MAX_LIMIT, MergePolicy


class Way(enum.Enum):
    """What a task's queries are searched among."""

    LOCAL = "local"
    """The task's own pool."""
    UNION = "union"
    """The pools of all tasks; M-BEIR calls it global."""


class Target(enum.Enum):
    """Which modality a search asks for."""

    ANY = "any"
    """None: the mesh decides, by the instruction if that names one."""
    WANTED = "wanted"
    """The one that the task is after."""
    EACH = "each"
    """Every one by itself, merged by raw inner product: one list over all vectors, as UniIR's."""


@dataclass(frozen=True, slots=True)
class Options:
    """What changes the figures."""

    ways: tuple[Way, ...] = (Way.LOCAL, Way.UNION)
    """Data sets without a union are searched the local way alone."""
    target: Target = Target.ANY
    rerank: int = 0
    """First hits to judge; 0: none."""
    merge: MergePolicy | None = None
    limit: int = 0
    """Hits to ask for; 0: as many as the metrics look at."""

    def __post_init__(self) -> None:
        """Refuse what cannot go together."""
        if self.target is Target.EACH and (self.rerank or self.merge):
            raise ValueError(
                "target `each` merges raw scores: it goes with neither rerank nor merge"
            )

    def ways_of(self, dataset: Dataset) -> tuple[Way, ...]:
        """Return how a data set's tasks are searched."""
        return self.ways if dataset.unions else (Way.LOCAL,)

    def limit_of(self, task: Task, excluded: int = 0) -> int:
        """Return how many hits to ask for, so that enough are left without the excluded."""
        metrics = max(depth(name) for name in task.metrics)
        return min(MAX_LIMIT, max(metrics, self.limit, self.rerank) + excluded)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        values = asdict(self)
        values["ways"] = [way.value for way in self.ways]
        values["target"] = self.target.value
        values["merge"] = self.merge.value if self.merge else None
        return values

    def digest(self, dataset: Dataset) -> str:
        """Return a short name of these options for this data set."""
        key = [self.as_json(), dataset.name, list(dataset.notes), [t.name for t in dataset.tasks]]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to try; changes no figure."""

    batch: int = 32
    """Searches in a call."""
    in_flight: int = 4
    """Calls at a time."""
    timeout_s: float = 60.0
    """Deadline of a call, of which the judge gets half."""
    patience_s: float = 60.0
    """Time without any answer after which to give up."""
