"""mmesh's index: its service as a process of its own, over gRPC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import grpc
import numpy as np

from mmesh import wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.content.v1 import content_pb2
from mmesh.api.index.v1 import collection_service_pb2, index_pb2
from mmesh.api.index.v1.collection_service_pb2_grpc import CollectionServiceStub
from mmesh.api.index.v1.index_pb2_grpc import IndexServiceStub
from mmesh.candidates import Candidate
from mmesh.content import Content
from mmesh.filters import Compare, Operator
from mmesh.local.ports import free_port
from mmesh.serving.deadline import Deadline
from peers.contract import DIM, LIMIT, AsyncSearcher, Batch, Condition, Peer, Setting, Vector
from services.gateway.shards.search_channel import SearchChannel

ROOT = Path(__file__).resolve().parents[2]
MODEL = "bench"
PAGE = 1000
START_S, CALL_S, COMPACT_S = 120.0, 30.0, 900.0
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
"""A channel with these has a connection of its own."""


class Ours(Peer):
    """A collection for each target of recall: segments are tuned when they are built."""

    replicas: ClassVar[int] = 1
    is_kept = False  # what it holds belongs to the code of today
    about = "server; its own choice of segments, attribute bitmaps"
    durable = "SQLite commit with fsync"
    is_async = True
    about_clients = "tasks of one process, on a stream to each replica"

    @classmethod
    def version(cls) -> str:
        """Return the versions of the service and of what it searches with."""
        return f"mmesh {version('mmesh')}, faiss-cpu {version('faiss-cpu')}"

    @classmethod
    def settings(cls, recall: float) -> list[Setting]:
        """Return targets of recall from a little below the wanted one: builds aim above them."""
        targets = (
            0.93, 0.935, 0.94, 0.945, 0.95, 0.96, 0.97,
            0.98, 0.985, 0.988, 0.99, 0.993, 0.996, 0.998, 1.0,
        )  # fmt: skip
        return [target for target in targets if target >= recall - 0.02]

    def open(self) -> None:
        """Start the service, and wait until it has loaded what there is."""
        self._replicas: list[_Replica] = []
        self._clients: Counter[float] = Counter()
        try:
            for number in range(self.replicas):
                self._replicas.append(_Replica(self.folder, number))
            for replica in self._replicas:
                replica.wait()
        except BaseException:
            self.close()
            raise
        self._writer = self._replicas[0]
        self._made: set[str] = set()

    def add(self, batch: Batch) -> None:
        """Upsert candidates with their vectors."""
        name = _name_of(self.settings(0)[0])
        if name not in self._made:
            self._create(self.settings(0)[0])
        columns = (batch.ids, batch.cats, batch.subs, batch.texts)
        candidates = [
            Candidate(str(i), Content.of(text), {"cat": cat, "sub": sub})
            for i, cat, sub, text in zip(*columns, strict=True)
        ]
        rows = [wire.candidate_to_pb(candidate) for candidate in candidates]
        self._upsert(name, rows, wire.vectors_to_pb(batch.vectors))

    def _create(self, target: float) -> None:
        request = collection_service_pb2.CreateCollectionRequest(
            name=_name_of(target),
            dim=DIM,
            model_fingerprint=MODEL,
            settings=collection_pb2.CollectionSettings(recall_target=target),
        )
        self._writer.collections.CreateCollection(request, timeout=CALL_S)
        self._made.add(request.name)

    def _upsert(self, name: str, rows: list[candidate_pb2.Candidate], vectors: object) -> None:
        request = index_pb2.UpsertCandidatesRequest(
            collection=name,
            candidates=rows,
            vectors=vectors,  # type: ignore[arg-type]  # a message
            model_fingerprint=MODEL,
        )
        self._writer.index.UpsertCandidates(request, timeout=CALL_S)

    def finish(self) -> None:
        """Make one segment of all rows."""
        self._compact(_name_of(self.settings(0)[0]))

    def _compact(self, name: str) -> None:
        for replica in self._replicas:
            replica.compact(name)

    def prepare(self, setting: float) -> None:
        """Make the collection of this target, of the rows of the first, unless it is there."""
        name = _name_of(setting)
        if name in self._made:
            return
        self._create(setting)
        request = index_pb2.ListCandidatesRequest(
            collection=_name_of(self.settings(0)[0]), page_size=PAGE, include_vectors=True
        )
        while True:
            page = self._writer.index.ListCandidates(request, timeout=CALL_S)
            if page.candidates:  # the last page may be empty
                self._upsert(name, list(page.candidates), page.vectors)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        self._compact(name)

    def searcher(self, setting: float) -> AsyncSearcher:
        """Search the collection of this target, over the stream to a replica, as gateways do."""
        replica = self._replicas[self._clients[setting] % self.replicas]
        self._clients[setting] += 1
        name = _name_of(setting)

        async def search(vector: Vector, condition: Condition | None) -> list[int]:
            request = _search_of(name, vector, condition)
            found = await replica.stream.search(request, Deadline.after(CALL_S))
            return [int(i) for i in found.lists[0].ids]

        return search

    def detail(self, setting: float) -> str:
        """Return what the searches go through."""
        shard = self._writer.index.GetShard(index_pb2.GetShardRequest(), timeout=CALL_S)
        return "; ".join(
            f"{one.index_factory}, {one.rows} rows, nprobe {one.nprobe}, recall {one.recall:.4f}, "
            f"built in {one.build_seconds:.1f} s"
            for one in shard.segments
            if one.collection == _name_of(setting)
        )

    def processes(self) -> list[int]:
        """Return this process, which has the clients, and those of the service."""
        return [os.getpid(), *(replica.pid for replica in self._replicas)]

    def close(self) -> None:
        """Stop the service."""
        for replica in self._replicas:
            replica.close()


class OursTwice(Ours):
    """The same with two replicas of the shard, of which each client uses one."""

    replicas = 2
    about = "server of two replicas; otherwise like ours"


class _Replica:
    """A process of the service, and its stubs."""

    def __init__(self, folder: Path, number: int) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        arguments = ["--shard", "0", "--shard-count", "1", "--port", str(port)]
        arguments += ["--data-dir", str(folder), "--stop-with-parent"]
        arguments += ["--log-level", "WARNING"]  # no line for each call, as with the others
        with (folder.parent / f"service-{number}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.index", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
                start_new_session=True,
            )
        self._channel = grpc.insecure_channel(self.address, OPTIONS)
        self.index = IndexServiceStub(self._channel)
        self.collections = CollectionServiceStub(self._channel)

    @cached_property
    def stream(self) -> SearchChannel:
        """The searches of all clients; for the event loop that asks first."""
        return SearchChannel(IndexServiceStub(grpc.aio.insecure_channel(self.address, OPTIONS)))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until it has loaded what there is."""
        until = time.monotonic() + START_S
        while True:
            try:
                if self.index.GetShard(index_pb2.GetShardRequest(), timeout=CALL_S).ready:
                    return
            except grpc.RpcError:
                if self._process.poll() is not None:
                    raise RuntimeError("the service ended; see its log") from None
            if time.monotonic() > until:
                raise TimeoutError("the service is not ready; see its log")
            time.sleep(0.1)

    def compact(self, name: str) -> None:
        """Make one segment of all that is written."""
        request = index_pb2.SearchRequest(
            collection=name,
            queries=wire.vectors_to_pb(np.ones((1, DIM), np.float32)),
            limit=1,
            consistency=collection_pb2.CONSISTENCY_STRONG,
        )
        self.index.Search(request, timeout=COMPACT_S)  # waits for the last write
        self.index.Compact(index_pb2.CompactRequest(collection=name), timeout=COMPACT_S)

    def close(self) -> None:
        """Stop it."""
        self._channel.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _search_of(name: str, vector: Vector, condition: Condition | None) -> index_pb2.SearchRequest:
    request = index_pb2.SearchRequest(
        collection=name,
        queries=wire.vectors_to_pb(np.atleast_2d(vector)),
        modalities=[content_pb2.MODALITY_TEXT],
        limit=LIMIT,
    )
    if condition:
        compared = Compare(condition[0], Operator.EQUAL, condition[1])
        request.filter.CopyFrom(wire.filter_to_pb(compared))
    return request


def _name_of(target: float) -> str:
    return f"recall-{round(1000 * target)}"
