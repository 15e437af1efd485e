"""Plan of a local mesh: its processes, their flags and their ports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mmesh.local.ports import free_port

DEFAULT_PORT = 50550
"""That of `mmesh.aio.DEFAULT_ADDRESS`, known without importing gRPC."""


class MeshFailed(Exception):
    """The mesh could not be started; the message says why."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How to run a local mesh."""

    data: Path = Path(".mmesh")
    """Folder for everything that is kept: log, pictures, and the services' logs."""
    shards: int = 1
    port: int = DEFAULT_PORT
    """Port of the gateway; 0 takes a free one."""
    reranker: str = "maxsim"
    """maxsim, none, or vllm:FOLDER."""
    encoders: tuple[str, ...] = ("lite",)
    """Each MODEL[,SETTING=VALUE]... with settings of the encoder service, such as "lite,dim=128";
    new collections are for the first."""
    metrics: bool = True
    """Serve /metrics of every service; `mesh.json` in the data folder says where."""
    replicas: int = 1
    """Processes that hold each shard."""
    log_url: str = ""
    """SQLAlchemy address of the log; empty: in the data folder."""
    blobs_url: str = ""
    """Where pictures and snapshots are; empty: in the data folder."""
    start_timeout_s: float = 120.0
    """How long a service may show no progress (log, CPU time) before its start has failed."""
    log_bytes: int = 64 << 20
    """Size from which on a service's log begins anew; the one before is kept beside it."""
    canary_cache: Path | None = None
    """Where models that passed their parity canary are noted; None: in the data folder."""


class Process(Protocol):
    """What there is to do with a process that runs; `asyncio.subprocess.Process` is one."""

    @property
    def pid(self) -> int:
        """Its id, also that of its process group."""

    @property
    def returncode(self) -> int | None:
        """How it ended, as in `subprocess`; None while it runs."""

    async def wait(self) -> int:
        """Return how it ended, once it has."""

    def send_signal(self, signal: int, /) -> None:
        """Send a signal."""


@dataclass(slots=True)
class Service:
    """One process of the mesh."""

    name: str
    port: int
    health: str
    """Name of its gRPC service, whose health says when it is ready."""
    arguments: Sequence[str]
    metrics: str | None = None
    """Where its /metrics are, if anywhere."""
    shard_count: int = 0
    """Shards of the set that it belongs to, if it is an index process."""
    shard: int = 0
    replica: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it gets besides those of this process."""
    forks: bool = True
    """It may be forked; families on torch and vLLM start processes and threads of their own."""
    process: Process | None = None
    restarts: int = 0
    started_at: float = 0.0
    log_start: int = 0
    """Where in its log the present process begins."""
    token: str = ""
    """Known to the present process alone, and to who started it."""

    @property
    def module(self) -> str:
        """The program."""
        return f"services.{self.kind}"

    @property
    def kind(self) -> str:
        """encoder, index, reranker or gateway."""
        return self.name.partition("-")[0]

    @property
    def branch(self) -> str:
        """The branch of the fork server that it comes from."""
        return "index" if self.kind == "index" else BRANCHES[0]

    @property
    def preload(self) -> Sequence[str]:
        """Modules that it imports when it runs, and its siblings, too."""
        return PRELOAD.get(self.kind, ())

    @property
    def own_health(self) -> str:
        """What to ask health for, so that no other process at its address answers for it."""
        return f"{self.health}@{self.token}"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if self.process and running else None


def plan_services(settings: LocalSettings) -> list[Service]:
    """Return the services of a mesh in the order in which they start, the gateway last."""
    encoders = _plan_encoders(settings)
    judges = _plan_judges(settings)
    calls = ["--encoder", json.dumps([encoder.address for encoder in encoders])]
    calls += ["--reranker", judges[0].address] if judges else []
    gateway = _service(settings, "gateway", calls, settings.port)
    # Not a flag: what reads those takes commas, quotes and backslashes for its own.
    found = [f"file:{settings.data.resolve() / 'index.json'}"]
    gateway.environment = {"MMESH_GATEWAY_INDEX": json.dumps(found)}
    index = plan_index(settings, "")
    return [*encoders, *judges, *index, gateway]


def _plan_encoders(settings: LocalSettings) -> list[Service]:
    planned = []
    for number, spelt in enumerate(settings.encoders):
        model, *pairs = spelt.split(",")
        flags = [part for pair in pairs for part in _flag_of(pair)]
        name = f"encoder-{number}" if number else "encoder"
        arguments = ["--model", model, *flags, *_canary_flags(settings)]
        planned.append(_service(settings, name, arguments))
        planned[-1].forks = model == EMBEDDED_ENCODER
    return planned


def _plan_judges(settings: LocalSettings) -> list[Service]:
    if settings.reranker == "none":
        return []
    judge = _service(settings, "reranker", ["--model", settings.reranker, *_canary_flags(settings)])
    judge.forks = settings.reranker == EMBEDDED_JUDGE
    return [judge]


def _canary_flags(settings: LocalSettings) -> list[str]:
    folder = settings.canary_cache or settings.data / "canary"
    return ["--canary-cache", str(folder.resolve())]


def _flag_of(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not (name and equals):
        raise MeshFailed(f"{pair!r} is no SETTING=VALUE of an encoder")
    return f"--{name.replace('_', '-')}", value


def plan_index(settings: LocalSettings, tag: str) -> list[Service]:
    """Return the index processes; `tag` tells their names from those of a set that runs already."""
    flags = ["--data-dir", str(settings.data.resolve()), "--shard-count", str(settings.shards)]
    flags += ["--blobs-url", settings.blobs_url] if settings.blobs_url else []
    # Not a flag: everybody on the machine may read those, and there may be a password in it.
    secrets = {"MMESH_INDEX_LOG_URL": settings.log_url} if settings.log_url else {}
    planned = []
    for replica in range(settings.replicas):
        for shard in range(settings.shards):
            name = f"index-{shard}{tag}{replica_suffix(replica)}"
            service = _service(settings, name, [*flags, "--shard", str(shard)])
            service.shard_count, service.shard, service.replica = settings.shards, shard, replica
            service.environment = secrets
            planned.append(service)
    return planned


def replica_suffix(replica: int) -> str:
    """Return what the name of a replica ends in: nothing for the first."""
    return f"-r{replica}" if replica else ""


def place_of(service: Service) -> tuple[int, int]:
    """Return shard and replica, by which an index process is told from others."""
    return service.shard, service.replica


EMBEDDED_ENCODER, EMBEDDED_JUDGE = "lite", "maxsim"
BRANCHES = ("models", "index")
"""What takes long to import on one is not needed on the other: they import at the same time."""
_WIRE = ("candidates", "collections", "content", "enums", "errors", "filters", "vectors")
TRUNK = (
    "mmesh.serving.libraries",
    "mmesh.serving.host",
    *(f"mmesh.wire.{one}" for one in _WIRE),  # which `mmesh.wire` loads when they are used
    "numpy",
)
"""What all branches have in common, mostly gRPC, numpy and pydantic."""
PRELOAD: dict[str, Sequence[str]] = {
    "encoder": ("mmesh.models.encoders.lite.model", "numpy.random"),
    "reranker": ("mmesh.models.judges.maxsim", "numpy.random"),
    "index": ("services.index.log.databases.sqlite",),
}
"""What a service of each kind imports when it runs. Not onnxruntime: its import starts a thread."""
HEALTH = {
    "encoder": "mmesh.api.encoder.v1.EncoderService",
    "index": "mmesh.api.index.v1.IndexService",
    "reranker": "mmesh.api.reranker.v1.RerankerService",
    "gateway": "mmesh.api.gateway.v1.RetrievalService",
}


def _service(
    settings: LocalSettings, name: str, arguments: Sequence[str], port: int = 0
) -> Service:
    port, metrics_port = port or free_port(), free_port() if settings.metrics else -1
    common = ["--port", str(port), "--metrics-port", str(metrics_port), "--stop-with-parent"]
    metrics = f"127.0.0.1:{metrics_port}" if settings.metrics else None
    kind = name.partition("-")[0]
    return Service(name, port, HEALTH[kind], [*arguments, *common], metrics)
