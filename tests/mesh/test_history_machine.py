"""A model test of histories: random writes, kills, log rollbacks, restores of snapshots, restarts.

After each step every process that runs must find exactly what the log has, which a dict says: all
candidates with their attributes and scores, no other, each once. The seed fixes the steps, not how
processes interleave. `MMESH_TEST_HISTORY_STEPS=300 MMESH_TEST_RESULTS=benchmarks/results` walks
further and stores what was done.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import sqlalchemy as sa

from mmesh.api.index.v1 import index_pb2
from mmesh.content import Modality
from mmesh.search import Consistency
from services.index.log.tables import metadata
from tests.effort import EFFORT, patient

SEED = int(os.environ.get("MMESH_HISTORY_SEED", "20263"))
DIM, COLLECTION, IDS = 8, "history", 240
CALL_S, TRIES = patient(30.0), 10
PLACES = [
    {"shard": 0, "shard_count": 2},
    {"shard": 0, "shard_count": 2, "seal_rows": 4096, "purge_s": 0.5, "tombstone_s": 0.5},
    {"shard": 1, "shard_count": 2, "snapshot_s": 0.5},
]
"""Two shards, the first one twice: one that builds, one that purges, one that stores snapshots."""
STEPS = {
    "write": 8, "delete": 3, "write_and_kill": 3, "kill": 3, "revive": 4, "copy": 4,
    "roll_back": 4, "roll_back_and_overtake": 4, "snapshot": 4, "compact": 1, "keep_snapshots": 2,
    "put_snapshots_back": 2, "restart_all": 1, "roll_back_while_down": 2,
}  # fmt: skip
"""Steps, and how often each is taken."""


@dataclass(frozen=True)
class Copy:
    """The log at a moment, and what a collection must hold then."""

    tables: dict
    rows: dict
    tokens: list


class Machine:
    """The processes, the dict, and copies of both."""

    def __init__(self, folder: Path, url: str, index_processes, oracle, new_row) -> None:
        self.folder, self.oracle, self._new_row = folder, oracle, new_row
        log_url = {"log_url": url} if url else {}
        self.data = folder / "data"
        self.processes = [
            index_processes.start(self.data, fork=True, **place, **log_url) for place in PLACES
        ]
        for process in self.processes:
            process.wait_ready()
        self.processes[0].create(COLLECTION, DIM)
        wait = {} if url else {"connect_args": {"timeout": CALL_S}}
        self._engine = sa.create_engine(url or f"sqlite:///{self.data / 'log.db'}", **wait)
        self.down: set[int] = set()
        self.tokens: list[str] = []
        """Of the writes that the log has."""
        self.lost: list[str] = []
        self.copies = [self._take()]
        self.random = random.Random(SEED)
        self._numbers = iter(range(1 << 30))
        self.done: list[str] = []
        self.counts: Counter[str] = Counter()

    # -- walking

    def walk(self, steps: int) -> None:
        try:
            for _ in range(steps):
                (name,) = self.random.choices(list(STEPS), list(STEPS.values()))
                self.done.append(name)
                getattr(self, name)()
                self.counts[name] += 1
                self.settle()
        except BaseException:
            print(f"seed {SEED}, steps:", *self.done, sep="\n")
            raise

    @property
    def up(self) -> list:
        return [p for n, p in enumerate(self.processes) if n not in self.down]

    def settle(self) -> None:
        """Compare each process with the dict, and tokens with the history that they are of."""
        assert {c.id for c in self.up[0].listed(COLLECTION)} == set(self.oracle.rows)
        queries = np.stack([self._row().vector for _ in range(2)])
        for process in self.up:
            found = process.search(
                COLLECTION, queries, 1000, consistency=Consistency.STRONG, timeout=CALL_S
            )
            self.oracle.check(found, queries, 1000, holds=process.holds)
            self.counts["compared"] += 1
        self._check_tokens(self.random.choice(self.up))

    def _check_tokens(self, process) -> None:
        query = np.eye(1, DIM, dtype=np.float32)
        for token in self.tokens[-1:] + self.random.sample(self.tokens, min(1, len(self.tokens))):
            process.search(
                COLLECTION, query, consistency=Consistency.SESSION, token=token, timeout=CALL_S
            )
        for token in self.random.sample(self.lost, min(1, len(self.lost))):
            with pytest.raises(grpc.RpcError) as refused:
                process.search(
                    COLLECTION, query, consistency=Consistency.SESSION, token=token, timeout=CALL_S
                )
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "restored to an earlier state" in refused.value.details()
            self.counts["tokens refused"] += 1

    # -- writes

    def _row(self):
        number = next(self._numbers)
        modality = self.random.choice(list(Modality))
        return self._new_row((SEED, number), DIM, modality, made=number)

    def _batch(self) -> dict:
        count = self.random.choice([1, 1, 5, 30])
        return {f"c{self.random.randrange(IDS)}": self._row() for _ in range(count)}

    def write(self) -> None:
        rows = self._batch()
        self.tokens.append(self.random.choice(self.up).upsert(COLLECTION, rows, timeout=CALL_S))
        self.oracle.rows |= rows

    def delete(self) -> None:
        living = sorted(self.oracle.rows)
        ids = self.random.sample(living, min(len(living), self.random.choice([1, 10, 60])))
        if not ids:
            return
        _, token = self.random.choice(self.up).delete(COLLECTION, ids, timeout=CALL_S)
        self.tokens.append(token)
        for candidate_id in ids:
            del self.oracle.rows[candidate_id]

    def write_and_kill(self) -> None:
        """Kill a process in the middle of a write, and repeat the write through another one."""
        if len(self.up) < 2:
            return
        number = self.random.choice([n for n in range(len(PLACES)) if n not in self.down])
        rows, request_id = self._batch(), f"kill-{next(self._numbers)}"
        process = self.processes[number]

        def send() -> None:
            try:
                process.upsert(COLLECTION, rows, request_id, timeout=CALL_S)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(self.random.random() * 0.03)
        self._kill(number)
        other = self.random.choice(self.up)
        token = other.upsert(COLLECTION, rows, request_id, timeout=CALL_S)
        sender.join()
        self.tokens.append(token)
        self.oracle.rows |= rows

    # -- processes

    def _kill(self, number: int) -> None:
        self.processes[number].end()
        self.down.add(number)

    def kill(self) -> None:
        """Kill a process; it stays away for some steps."""
        if len(self.up) > 1:
            self._kill(self.random.choice([n for n in range(len(PLACES)) if n not in self.down]))

    def revive(self) -> None:
        for number in sorted(self.down):
            self.processes[number].start()
            self.processes[number].wait_ready()
        self.down.clear()

    def restart_all(self) -> None:
        self._end_all()
        self.revive()

    def _end_all(self) -> None:
        for number in range(len(PLACES)):
            if number not in self.down:
                self._kill(number)

    # -- the log

    def _take(self) -> Copy:
        with self._engine.begin() as connection:
            tables = {
                table: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
                for table in metadata.sorted_tables
            }
        return Copy(tables, dict(self.oracle.rows), list(self.tokens))

    def copy(self) -> None:
        self.copies.append(self._take())

    def roll_back(self) -> None:
        """Put a copy of the log back, in one transaction, while processes run."""
        copy = self.random.choice(self.copies[-3:])
        self._put_back(copy)
        self.lost += [token for token in self.tokens if token not in set(copy.tokens)]
        self.oracle.rows.clear()
        self.oracle.rows |= copy.rows
        self.tokens = list(copy.tokens)
        del self.copies[self.copies.index(copy) + 1 :]  # of a history that the log has no more

    def _put_back(self, copy: Copy) -> None:
        for _ in range(TRIES):
            try:
                with self._engine.begin() as connection:
                    for table, rows in copy.tables.items():
                        connection.execute(table.delete())
                        if rows:
                            connection.execute(table.insert(), rows)
                return
            except sa.exc.OperationalError:  # a writer or a purge was in the way
                time.sleep(0.05)
        raise AssertionError("the copy could not be put back")

    def roll_back_and_overtake(self) -> None:
        """Write on at once, so that the new history passes the numbers of the old one."""
        self.roll_back()
        for _ in range(self.random.randrange(1, 12)):
            self.write()

    def roll_back_while_down(self) -> None:
        self._end_all()
        self.roll_back()
        if self.random.random() < 0.5:  # one that comes first writes before the others read
            self.processes[0].start()
            self.processes[0].wait_ready()
            self.down.discard(0)
            for _ in range(self.random.randrange(8)):
                self.write()
        self.revive()

    # -- snapshots

    def snapshot(self) -> None:
        request = index_pb2.CreateSnapshotRequest(collection=COLLECTION)
        for process in self.up:
            try:
                process.index.CreateSnapshot(request, timeout=CALL_S)
            except grpc.RpcError as error:  # the other replica was first
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise

    def compact(self) -> None:
        request = index_pb2.CompactRequest(collection=COLLECTION)
        self.random.choice(self.up).index.Compact(request, timeout=CALL_S)

    def keep_snapshots(self) -> None:
        """Copy the store of snapshots, as a backup of it does."""
        if (source := self.data / "snapshots").exists():
            shutil.rmtree(self.folder / "kept", ignore_errors=True)
            with contextlib.suppress(shutil.Error):  # files go meanwhile; the copy is torn then
                shutil.copytree(source, self.folder / "kept")

    def put_snapshots_back(self) -> None:
        """Put an old copy of the snapshots back: of an earlier moment, or of a lost history."""
        if not (self.folder / "kept").exists():
            return
        self._end_all()
        shutil.rmtree(self.data / "snapshots", ignore_errors=True)
        shutil.copytree(self.folder / "kept", self.data / "snapshots")
        self.revive()


@pytest.fixture(params=["sqlite", "postgresql"])
def machine(request, tmp_path, index_processes, oracle, new_row):
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
    return Machine(tmp_path, url, index_processes, oracle, new_row)


def test_whatever_becomes_of_the_log_each_process_finds_what_it_has(machine, request):
    begun = time.monotonic()  # some 0.6 s a step, most of it for processes that start
    machine.walk(EFFORT.history_steps)
    if folder := os.environ.get("MMESH_TEST_RESULTS"):
        store(Path(folder), request.node.callspec.params["machine"], machine, begun)


def store(folder: Path, engine: str, machine: Machine, begun: float) -> None:
    path = folder / "histories.json"
    known = json.loads(path.read_text()) if path.exists() else {"name": "histories", "engines": {}}
    known["engines"][engine] = {
        "seed": SEED,
        "steps": len(machine.done),
        "by kind": dict(sorted(machine.counts.items())),
        "violations": 0,
        "seconds": round(time.monotonic() - begun, 1),
    }
    path.write_text(json.dumps(known, indent=1) + "\n")
