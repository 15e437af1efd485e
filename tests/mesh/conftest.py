"""Index processes without a mesh around them, and an oracle that says what they must answer."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image as Pillow

from mmesh import wire
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.index.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
)
from mmesh.candidates import Candidate
from mmesh.content import Attributes, Content, Modality
from mmesh.filters import AllOf, AnyOf, Compare, Filter, In, Not, Operator
from mmesh.search import Consistency
from tests.effort import patient

READY_S = patient(30.0)
CALL_S = patient(10.0)
MODEL = "crash-model"
MARK = "MMESH_TEST_RUN"
"""Variable by which processes that ours started can be told from those of others."""
SMALL = {
    "poll_s": 0.02,
    "seal_rows": 64,
    "quiet_s": 0.5,
    "drain_s": 0.0,
    "snapshot_s": 0.0,
}
"""Settings with which sealing, building and merging happen all the time."""
TOLERANCE = 2e-3
"""Scores of segments in half precision differ by up to this."""
CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
]


def _pixel() -> bytes:
    data = io.BytesIO()
    Pillow.new("RGB", (1, 1), (9, 9, 9)).save(data, "PNG")
    return data.getvalue()


PIXEL = _pixel()


@dataclass(frozen=True)
class Row:
    """A candidate as the oracle knows it; its vector has unit length."""

    vector: np.ndarray = field(repr=False)
    modality: Modality
    attributes: Attributes

    def candidate(self, candidate_id: str) -> Candidate:
        parts = {
            Modality.TEXT: (candidate_id,),
            Modality.IMAGE: (PIXEL,),
            Modality.IMAGE_TEXT: (candidate_id, PIXEL),
        }[self.modality]
        return Candidate(candidate_id, Content.of(*parts), self.attributes)


@dataclass(frozen=True)
class Hits:
    """The hits of one query in one modality."""

    modality: Modality
    ids: list[str]
    scores: np.ndarray
    attributes: list[Attributes]


class Found(list[Hits]):
    """The lists of a reply, in its order, and the token of the state that was searched."""

    def __init__(self, lists: Iterable[Hits], token: str) -> None:
        super().__init__(lists)
        self.token = token


class Forker:
    """A process that has imported the index service and forks one whenever it is asked to.

    What it starts differs from `python -m services.index` only in that a second of imports is
    spared, so that hundreds of restarts fit into a test. Each has the environment that the test has
    when it starts it.
    """

    _PROGRAM = """
import json, os, signal, sys
from services.index.server import main
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    order = json.loads(line)
    if pid := os.fork():
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["index", *order["arguments"]]
    main()
    sys.exit()
"""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )
        self.pid = self._process.pid

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that starts now."""
        return os.environ | {"OMP_WAIT_POLICY": "PASSIVE", MARK: self.mark}

    def start(self, arguments: Sequence[str], log: Path) -> int:
        order = {"arguments": arguments, "log": str(log), "environment": self.environment()}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(READY_S)
        self._process.stdout.close()


def start_interpreter(
    environment: Mapping[str, str], arguments: Sequence[str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "services.index", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
        )


class IndexProcess:
    """An index service that may be killed and started again, always on the same port."""

    def __init__(
        self,
        settings: Mapping[str, object],
        log: Path,
        forker: Forker,
        *,
        fork: bool,
    ) -> None:
        self._holder = socket.socket()  # bound, not listening: nobody else gets the port meanwhile
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.port = int(self._holder.getsockname()[1])
        self.settings, self.log = dict(settings), log
        self.slots = (int(settings["shard"]), int(settings["shard_count"]))
        self._forker, self._fork = forker, fork
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None
        self.pid = self._said = 0
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", CHANNEL)
        self.index = index_pb2_grpc.IndexServiceStub(self._channel)
        self.collections = collection_service_pb2_grpc.CollectionServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    # -- life and death

    def start(self, **settings: object) -> None:
        """Start it, with `settings` changed from now on; `wait_ready` says when it serves."""
        assert self._pidfd is None, "it runs already"
        self.settings |= settings
        self._said = self.log.stat().st_size if self.log.exists() else 0
        flags = [
            text
            for name, value in (self.settings | {"port": self.port}).items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        flags.append("--stop-with-parent")
        if self._fork:
            self.pid = self._forker.start(flags, self.log)
        else:
            self._child = start_interpreter(self._forker.environment(), flags, self.log)
            self.pid = self._child.pid
        self._pidfd = os.pidfd_open(self.pid)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Send a signal and wait until the process is gone."""
        if self._pidfd is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
        until = time.monotonic() + READY_S
        while self.is_running():
            assert time.monotonic() < until, f"process {self.pid} does not end"
            time.sleep(0.002)
        os.close(self._pidfd)
        self._pidfd = None

    def is_running(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        return True

    def wait_ready(self) -> None:
        """Return once its health says that it serves."""
        request = health_pb2.HealthCheckRequest(service="mmesh.api.index.v1.IndexService")
        until = time.monotonic() + READY_S
        while True:
            assert self.is_running(), f"it ended while it started:\n{self.said()[-3000:]}"
            assert time.monotonic() < until, f"not ready in {READY_S} s:\n{self.said()[-3000:]}"
            with contextlib.suppress(grpc.RpcError):
                reply = self._health.Check(request, timeout=1.0, wait_for_ready=True)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            time.sleep(0.01)

    def close(self) -> None:
        self.end()
        self._channel.close()
        self._holder.close()

    def said(self) -> str:
        """Return what it wrote into its log since it was started."""
        return self.log.read_bytes()[self._said :].decode(errors="replace")

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels; needs the setting `metrics_port`."""
        address = f"http://127.0.0.1:{self.settings['metrics_port']}/metrics"
        with urllib.request.urlopen(address, timeout=CALL_S) as reply:
            lines = reply.read().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.partition(" ")[0].partition("{")[0] == name
        )

    # -- calls

    def holds(self, candidate_id: str) -> bool:
        """Tell whether a candidate belongs to the shard of this process."""
        shard, shard_count = self.slots
        slot = hashlib.sha256(candidate_id.encode()).digest()[0]
        return slot * shard_count // 256 == shard

    def create(self, collection: str, dim: int) -> None:
        self.collections.CreateCollection(
            collection_service_pb2.CreateCollectionRequest(
                name=collection, dim=dim, model_fingerprint=MODEL
            ),
            timeout=CALL_S,
        )

    def describe(self, collection: str) -> collection_pb2.Collection:
        request = collection_service_pb2.GetCollectionRequest(name=collection)
        return self.collections.GetCollection(request, timeout=CALL_S).collection

    def upsert(
        self,
        collection: str,
        rows: Mapping[str, Row],
        request_id: str = "",
        *,
        timeout: float = CALL_S,
    ) -> str:
        """Write rows by id and return the token."""
        request = index_pb2.UpsertCandidatesRequest(
            collection=collection,
            candidates=[wire.candidate_to_pb(row.candidate(i)) for i, row in rows.items()],
            vectors=wire.vectors_to_pb(np.stack([row.vector for row in rows.values()])),
            model_fingerprint=MODEL,
            request_id=request_id,
        )
        return self.index.UpsertCandidates(request, timeout=timeout).token

    def delete(
        self, collection: str, ids: Sequence[str], request_id: str = "", *, timeout: float = CALL_S
    ) -> tuple[int, str]:
        """Delete by id; return how many there were, and the token."""
        request = index_pb2.DeleteCandidatesRequest(
            collection=collection, ids=ids, request_id=request_id
        )
        reply = self.index.DeleteCandidates(request, timeout=timeout)
        return reply.deleted, reply.token

    def get(self, collection: str, ids: Sequence[str]) -> dict[str, Candidate]:
        request = index_pb2.BatchGetCandidatesRequest(collection=collection, ids=ids)
        reply = self.index.BatchGetCandidates(request, timeout=CALL_S)
        return {message.id: wire.candidate_from_pb(message) for message in reply.candidates}

    def listed(self, collection: str) -> list[Candidate]:
        """Return what is listed over all pages, without the bytes of pictures."""
        found, token = [], ""
        while True:
            request = index_pb2.ListCandidatesRequest(
                collection=collection, page_size=1000, page_token=token
            )
            page = self.index.ListCandidates(request, timeout=CALL_S)
            found += [wire.candidate_from_pb(message) for message in page.candidates]
            if not (token := page.next_page_token):
                return found

    def search(
        self,
        collection: str,
        queries: np.ndarray,
        limit: int = 10,
        *,
        modalities: Iterable[Modality] = (),
        condition: Filter | None = None,
        consistency: Consistency | None = None,
        token: str = "",
        timeout: float = CALL_S,
    ) -> Found:
        """Search for queries (m, dim)."""
        request = index_pb2.SearchRequest(
            collection=collection,
            queries=wire.vectors_to_pb(queries),
            modalities=[wire.modality_to_pb(modality) for modality in modalities],
            limit=limit,
            filter=None if condition is None else wire.filter_to_pb(condition),
            consistency=wire.consistency_to_pb(consistency),
            token=token,
        )
        reply = self.index.Search(request, timeout=timeout)
        lists = (
            Hits(
                wire.modality_from_pb(message.modality),
                list(message.ids),
                np.frombuffer(message.scores, "<f4"),
                [wire.attributes_from_pb(entry.values) for entry in message.attributes],
            )
            for message in reply.lists
        )
        return Found(lists, reply.token)

    def shard(self) -> index_pb2.GetShardResponse:
        return self.index.GetShard(index_pb2.GetShardRequest(), timeout=CALL_S)


class IndexProcesses:
    """Starts index processes, and knows every process that comes from them."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        self._folder, self._forker = folder, forker
        self._processes: list[IndexProcess] = []

    def start(
        self,
        data: Path,
        *,
        shard: int = 0,
        shard_count: int = 1,
        fork: bool = False,
        **settings: object,
    ) -> IndexProcess:
        """Start a process; `fork` spares the imports. It is not ready yet."""
        where = {"shard": shard, "shard_count": shard_count, "data_dir": data}
        log = self._folder / f"index-{len(self._processes)}.log"
        process = IndexProcess(SMALL | where | settings, log, self._forker, fork=fork)
        self._processes.append(process)
        process.start()
        return process

    def running(self) -> dict[int, str]:
        """Return the command lines, by pid, of all processes that come from ours."""
        mark, found = f"{MARK}={self._forker.mark}".encode(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode(errors="replace").strip()
        found.pop(self._forker.pid, None)
        return found

    def end_all(self, number: int = signal.SIGKILL) -> None:
        """End the index processes; what they started must end by itself."""
        for process in self._processes:
            process.end(number)

    def close(self) -> None:
        for process in self._processes:
            process.close()
        self.end_all()
        for pid in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """The process that all forked index processes come from."""
    forker = Forker()
    yield forker
    forker.close()


@pytest.fixture
def index_processes(tmp_path, forker, loop_logs) -> Iterator[IndexProcesses]:
    """Index processes that a test may treat badly; all are ended afterwards."""
    loop_logs.watch(tmp_path)
    processes = IndexProcesses(tmp_path, forker)
    try:
        yield processes
    finally:
        processes.close()


class Oracle:
    """What a collection must hold, as a plain dict, and exact search over it."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def matching(self, condition: Filter | None) -> dict[str, Row]:
        """Return the rows that a filter holds for."""
        return {
            candidate_id: row
            for candidate_id, row in self.rows.items()
            if condition is None or filter_holds(condition, row.attributes)
        }

    def check(
        self,
        found: Sequence[Hits],
        queries: np.ndarray,
        limit: int,
        *,
        modalities: Sequence[Modality] = tuple(Modality),
        condition: Filter | None = None,
        holds: Callable[[str], bool] = lambda candidate_id: True,
    ) -> None:
        """Fail unless `found` are the best hits of each query and modality.

        Ids may change places only where scores differ by less than half precision can tell.
        """
        wanted = [(query, modality) for query in queries for modality in modalities]
        assert [hits.modality for hits in found] == [modality for _, modality in wanted]
        rows = {i: row for i, row in self.matching(condition).items() if holds(i)}
        for hits, (query, modality) in zip(found, wanted, strict=True):
            own = {i: row for i, row in rows.items() if row.modality is modality}
            check_hits(hits, own, query / np.linalg.norm(query), limit)


def check_hits(hits: Hits, matching: Mapping[str, Row], query: np.ndarray, limit: int) -> None:
    """Fail unless `hits` are the `limit` best of `matching`, each once and as it is there."""
    assert len(set(hits.ids)) == len(hits.ids), f"doubled: {hits.ids}"
    unknown = set(hits.ids) - set(matching)
    assert not unknown, f"these do not match or are deleted: {sorted(unknown)}"
    assert len(hits.ids) == min(limit, len(matching)), (
        f"{len(hits.ids)} hits of {min(limit, len(matching))}"
    )
    exact = np.array([matching[i].vector @ query for i in hits.ids], np.float32)
    np.testing.assert_allclose(hits.scores, exact, atol=TOLERANCE)
    assert (np.diff(hits.scores) <= 0).all(), "not best first"
    for candidate_id, attributes in zip(hits.ids, hits.attributes, strict=True):
        assert attributes == matching[candidate_id].attributes, candidate_id
    missed = [row.vector @ query for i, row in matching.items() if i not in set(hits.ids)]
    if missed:
        assert max(missed) <= hits.scores.min() + TOLERANCE, "a better one was missed"


_COMPARISONS: dict[Operator, Callable[[object, object], bool]] = {
    Operator.EQUAL: lambda value, wanted: value == wanted,
    Operator.NOT_EQUAL: lambda value, wanted: value != wanted,
    Operator.LESS: lambda value, wanted: value < wanted,
    Operator.LESS_OR_EQUAL: lambda value, wanted: value <= wanted,
    Operator.GREATER: lambda value, wanted: value > wanted,
    Operator.GREATER_OR_EQUAL: lambda value, wanted: value >= wanted,
}


def filter_holds(condition: Filter, attributes: Attributes) -> bool:
    """Tell whether a filter holds, by the words of its documentation."""
    match condition:
        case AllOf(filters):
            return all(filter_holds(part, attributes) for part in filters)
        case AnyOf(filters):
            return any(filter_holds(part, attributes) for part in filters)
        case Not(inner):
            return not filter_holds(inner, attributes)
        case In(attribute, values):
            return any(single in values for single in _singles(attributes, attribute))
        case Compare(attribute, operator, value):
            holds = _COMPARISONS[operator]
            return any(holds(single, value) for single in _singles(attributes, attribute))


def _singles(attributes: Attributes, name: str) -> tuple[object, ...]:
    value = attributes.get(name, ())
    return value if isinstance(value, tuple) else (value,)


@pytest.fixture
def oracle() -> Oracle:
    """An empty dict of rows, with exact search over it."""
    return Oracle()


@pytest.fixture(scope="session")
def new_row() -> Callable[..., Row]:
    """Return a row with a random vector of unit length; equal seeds give equal vectors."""

    def make(
        seed: object, dim: int, modality: Modality = Modality.TEXT, **attributes: object
    ) -> Row:
        vector = np.random.default_rng(seed).standard_normal(dim)
        return Row((vector / np.linalg.norm(vector)).astype(np.float32), modality, attributes)

    return make
