"""One index service as a process of its own, with what benchmarks do to it: fill, ask, measure."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from bench import in_threads
from numpy.typing import NDArray

from mmesh import wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.content.v1 import content_pb2
from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.index.v1 import collection_service_pb2, collection_service_pb2_grpc, index_pb2
from mmesh.api.index.v1.index_pb2_grpc import IndexServiceStub
from mmesh.local.mesh import is_serving
from mmesh.local.ports import free_port
from mmesh.vectors import DataType

MODEL = "benchmark"
START_S = 300.0
PATIENCE_S = 600.0
CLIENT_NICE = 10
"""Clients give way to the server, as if they ran on machines of their own."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)
Values = NDArray[np.float32]


@dataclass
class IndexProcess:
    """A running index service; `start` makes one."""

    process: subprocess.Popen[bytes]
    address: str

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def cpu_s(self) -> float:
        """Return the CPU seconds of the process so far, its builder left out."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def peak_bytes(self) -> int:
        """Return the most memory that the process had in use."""
        return self._status("VmHWM")

    def used_bytes(self) -> int:
        """Return the memory that the process has in use."""
        return self._status("VmRSS")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(name))
        return int(line.split()[1]) * 1024

    @contextmanager
    def stub(self) -> Iterator[IndexServiceStub]:
        """Yield a blocking stub on a connection of its own."""
        with grpc.insecure_channel(self.address, options=CHANNEL) as channel:
            yield IndexServiceStub(channel)

    def create_collection(self, name: str, dim: int, **settings: Any) -> None:
        """Create a collection with `CollectionSettings` as keyword arguments."""
        with grpc.insecure_channel(self.address) as channel:
            collection_service_pb2_grpc.CollectionServiceStub(channel).CreateCollection(
                collection_service_pb2.CreateCollectionRequest(
                    name=name,
                    dim=dim,
                    model_fingerprint=MODEL,
                    settings=collection_pb2.CollectionSettings(**settings),
                )
            )

    def set_settings(self, name: str, **settings: Any) -> None:
        """Replace the settings of a collection."""
        with grpc.insecure_channel(self.address) as channel:
            collection_service_pb2_grpc.CollectionServiceStub(channel).UpdateCollection(
                collection_service_pb2.UpdateCollectionRequest(
                    name=name,
                    settings=collection_pb2.CollectionSettings(**settings),
                    update_mask={"paths": ["*"]},
                )
            )

    def compact(self, name: str) -> Sequence[index_pb2.Segment]:
        """Merge everything into one segment and return what there is then."""
        with self.stub() as stub:
            request = index_pb2.CompactRequest(collection=name)
            return stub.Compact(request, timeout=PATIENCE_S).segments

    def wait_applied(self, token: str, name: str, dim: int) -> None:
        """Wait until searches see the write that `token` names."""
        query = np.full((1, dim), 1.0, np.float32)
        request = search_request(name, query, limit=1)
        request.token = token
        with self.stub() as stub:
            stub.Search(request, timeout=PATIENCE_S)

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def _one_core_apart() -> Iterator[None]:
    """Keep what is started inside on one core, and this thread off it from then on."""
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise SystemExit("this machine has one core; the server needs one and its clients another")
    os.sched_setaffinity(0, {first})
    try:
        yield
    finally:
        os.sched_setaffinity(0, others)


@contextmanager
def running_index(
    folder: Path, *arguments: str, on_one_core: bool = False
) -> Iterator[IndexProcess]:
    """Start an index service on a folder, wait until it is ready, and stop it in the end.

    With `on_one_core` it has a core for itself, and this thread and those it starts the others.
    """
    port = free_port()
    command = [
        sys.executable, "-m", "services.index", "--port", str(port), "--data-dir", str(folder),
        "--drain-s", "0", "--log-level", "WARNING", *arguments,
    ]  # fmt: skip
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with _one_core_apart() if on_one_core else nullcontext():
        process = subprocess.Popen(command, env=environment)
    index = IndexProcess(process, f"127.0.0.1:{port}")
    try:
        _wait_ready(index)
        yield index
    finally:
        index.stop()


def _wait_ready(index: IndexProcess) -> None:
    until = time.monotonic() + START_S
    while not asyncio.run(is_serving(index.address, "mmesh.api.index.v1.IndexService")):
        if index.process.poll() is not None or time.monotonic() > until:
            raise SystemExit("the index service does not come up")
        time.sleep(0.05)


def candidate(number: int, attributes: dict[str, Any] | None = None) -> candidate_pb2.Candidate:
    """Return the candidate of a row."""
    part = content_pb2.Part(text=f"row {number}")
    message = candidate_pb2.Candidate(
        id=f"row-{number:07}", content=content_pb2.Content(parts=[part])
    )
    for name, value in (attributes or {}).items():
        message.attributes[name].CopyFrom(filter_pb2.AttributeValue(**value))
    return message


def upsert_requests(
    name: str,
    rows: Values,
    batch: int,
    *,
    data_type: DataType = DataType.FLOAT32,
    attributes: Callable[[int], dict[str, Any]] | None = None,
) -> Iterator[index_pb2.UpsertCandidatesRequest]:
    """Yield the writes of all rows, `batch` at a time."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        yield index_pb2.UpsertCandidatesRequest(
            collection=name,
            candidates=[
                candidate(n, attributes(n) if attributes else None)
                for n in range(start, start + len(part))
            ],
            vectors=wire.vectors_to_pb(part, data_type),
            model_fingerprint=MODEL,
            request_id=f"{name}-{start}",
        )


def fill(index: IndexProcess, name: str, rows: Values, **options: Any) -> str:
    """Write all rows, a few calls at a time, wait until they are applied, return the token."""
    requests = upsert_requests(name, rows, 500, **options)
    tokens: list[str] = []

    def send(stub: IndexServiceStub) -> None:
        while True:
            with lock:
                request = next(requests, None)
            if request is None:
                return
            tokens.append(stub.UpsertCandidates(request, timeout=PATIENCE_S).token)

    lock = threading.Lock()
    with index.stub() as stub:
        in_threads(4, lambda _: send(stub))
    token = max(tokens, key=lambda t: int(t.rpartition(":")[2]))
    index.wait_applied(token, name, rows.shape[1])
    return token


def search_request(
    name: str, queries: Values, limit: int = 10, **options: Any
) -> index_pb2.SearchRequest:
    """Return the search of the rows of `queries` among texts."""
    return index_pb2.SearchRequest(
        collection=name,
        queries=wire.vectors_to_pb(queries),
        limit=limit,
        modalities=[content_pb2.MODALITY_TEXT],
        **options,
    )


def rows_of(response: index_pb2.SearchResponse) -> list[list[int]]:
    """Return the numbers of the rows that were found, by query."""
    return [[int(found[4:]) for found in hits.ids] for hits in response.lists]


@dataclass(frozen=True, slots=True)
class Load:
    """What a closed loop of clients measured."""

    seconds: list[float]
    wall_s: float
    server_cpu_s: float
    queries: int

    @property
    def per_second(self) -> float:
        """Queries in a second."""
        return self.queries / self.wall_s

    @property
    def per_core(self) -> float:
        """Queries in a CPU second of the server."""
        return self.queries / self.server_cpu_s


def load(
    index: IndexProcess,
    requests: Sequence[index_pb2.SearchRequest],
    clients: int,
    duration_s: float,
    queries_each: int = 1,
) -> Load:
    """Let so many clients search for a while, each on its own connection, one call at a time."""
    method = "/mmesh.api.index.v1.IndexService/Search"
    packed = [request.SerializeToString() for request in requests]
    times: list[list[float]] = [[] for _ in range(clients)]

    def client(number: int) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), CLIENT_NICE)
        with grpc.insecure_channel(index.address, options=CHANNEL) as channel:
            call = channel.unary_unary(method)  # bytes to bytes: the client's work is not measured
            call(packed[0], timeout=PATIENCE_S)
            ready.wait()
            until, turn = time.perf_counter() + duration_s, number
            while time.perf_counter() < until:
                begun = time.perf_counter()
                call(packed[turn % len(packed)], timeout=PATIENCE_S)
                times[number].append(time.perf_counter() - begun)
                turn += clients

    ready = threading.Barrier(clients, action=lambda: started.append((_now(), index.cpu_s())))
    started: list[tuple[float, float]] = []
    in_threads(clients, client)
    wall_s, cpu_s = _now() - started[0][0], index.cpu_s() - started[0][1]
    every = [second for one in times for second in one]
    return Load(every, wall_s, cpu_s, len(every) * queries_each)


def _now() -> float:
    return time.perf_counter()
