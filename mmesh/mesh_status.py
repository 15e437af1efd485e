"""Health of a mesh: which processes serve, which shards have a replica, and why others do not."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mmesh.errors import DeadlineExceeded, Draining, MmeshError, Unavailable


class ServiceRole(enum.Enum):
    """What a process does."""

    ENCODER = "encoder"
    INDEX = "index"
    RERANKER = "reranker"


class ServiceState(enum.Enum):
    """Whether a process can be used."""

    SERVING = "serving"
    LOADING = "loading"
    """It answers, and does not hold all of its shard yet."""
    DRAINING = "draining"
    """It shuts down."""
    UNREACHABLE = "unreachable"
    """It does not answer, or not in time."""
    FAILING = "failing"
    """It answers with an error that is none of the others."""
    MISSING = "missing"
    """No process is known that holds this shard."""

    @classmethod
    def of(cls, error: MmeshError) -> ServiceState:
        """Return the state of a process whose answer is an error."""
        if isinstance(error, Draining):
            return cls.DRAINING
        return cls.UNREACHABLE if isinstance(error, Unavailable | DeadlineExceeded) else cls.FAILING


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The state of one process, or of a shard that no process holds."""

    role: ServiceRole
    state: ServiceState
    address: str = ""
    """host:port at which the gateway calls it; empty where there is no process."""
    shard: int = 0
    """Number of its shard, from 0; means something with a `shard_count` only."""
    shard_count: int = 0
    """Shards of its shard set; 0 for what is no index process, or has not said it yet."""
    replica: int = 0
    """Number among the processes of the same shard, from 0, by the order of their addresses."""
    detail: str = ""
    """A sentence for people: what it serves, or why it does not."""

    @property
    def is_serving(self) -> bool:
        """Whether it can be used."""
        return self.state is ServiceState.SERVING


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The processes that a gateway calls."""

    services: tuple[ServiceStatus, ...]
    version: str
    """Version of the gateway."""
    shard_count: int = 0
    """Shards of the set that searches go to; 0 while no index process is known."""

    @property
    def is_serving(self) -> bool:
        """Whether all of them can be used."""
        return all(service.is_serving for service in self.services)
