"""Restore drills: the commands of the how-to, a log and pictures of different moments, both orders.

About 3 s each, for the start of four index processes.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image as Pillow

from mmesh.api.index.v1 import index_pb2
from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import DataLoss
from mmesh.search import Consistency
from mmesh.testing.postgres import postgres_path
from services.index.store.objects import open_objects
from tests.effort import needs_full_effort

PAGE = Path(__file__).parents[2] / "docs/how-to/back-up-and-restore.md"
FENCE = re.compile(r"^```sh ([\w-]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DIM, COLLECTION, CALL_S = 8, "drill", 60.0
TEXTS, PICTURES = 60, 12


@dataclass(frozen=True)
class Picture:
    """A candidate with a picture of its own."""

    number: int
    vector: np.ndarray = field(repr=False)
    modality = Modality.IMAGE

    def candidate(self, candidate_id: str) -> Candidate:
        data = io.BytesIO()
        Pillow.new("RGB", (2, 2), (self.number, self.number // 256, 7)).save(data, "PNG")
        return Candidate(candidate_id, Content.of(data.getvalue()), {})


class Drill:
    """Two index processes of one shard, and copies of what they wrote."""

    def __init__(self, folder: Path, url: str, index_processes, new_row, **where) -> None:
        self.data, self.copy, self._url, self._new_row = (
            folder / "data",
            folder / "copy",
            url,
            new_row,
        )
        self.copy.mkdir()
        where |= {"log_url": url} if url else {}
        self.processes = [index_processes.start(self.data, fork=True, **where) for _ in range(2)]
        for process in self.processes:
            process.wait_ready()
        self.writer = self.processes[0]
        self.writer.create(COLLECTION, DIM)

    @property
    def kind(self) -> str:
        return "postgresql" if self._url else "sqlite"

    def run(self, block: str, lines: slice = slice(None)) -> None:
        """Run a block of the page, or some of its lines."""
        text = dict(FENCE.findall(PAGE.read_text("utf-8")))[f"{block}-{self.kind}"]
        script = "\n".join(["set -e", *text.splitlines()[lines]])
        environment = os.environ | {
            "PATH": f"{postgres_path()}:{os.environ['PATH']}",
            "DATA": str(self.data),
            "COPY": str(self.copy),
            "PGURL": self._url.replace("+psycopg", ""),
        }
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def write(self, name: str) -> str:
        """Write texts and pictures of this name, delete one, and return the token of the last."""
        seed = sum(name.encode())
        texts = {f"{name}-{n}": self._new_row((seed, n), DIM) for n in range(TEXTS)}
        self.writer.upsert(COLLECTION, texts)
        pictures = {
            f"{name}-p{n}": Picture(seed + n, self._new_row((seed, n, 1), DIM).vector)
            for n in range(PICTURES)
        }
        self.writer.upsert(COLLECTION, pictures)
        return self.writer.delete(COLLECTION, [f"{name}-0"])[1]

    def snapshot(self) -> None:
        request = index_pb2.CreateSnapshotRequest(collection=COLLECTION)
        self.writer.index.CreateSnapshot(request, timeout=CALL_S)

    def stop(self) -> None:
        for process in self.processes:
            process.end()

    def start(self) -> None:
        for process in self.processes:
            process.start()
        for process in self.processes:
            process.wait_ready()

    def check(self) -> set[str]:
        """Fail unless each process finds what the log has, and return that."""
        logged = {candidate.id for candidate in self.writer.listed(COLLECTION)}
        queries = np.eye(1, DIM, dtype=np.float32)
        for process in self.processes:
            found = process.search(COLLECTION, queries, 1000, consistency=Consistency.STRONG)
            assert {i for hits in found for i in hits.ids} == logged
            assert sum(len(hits.ids) for hits in found) == len(logged)
        return logged

    def unreadable(self) -> set[str]:
        """Return the ids of candidates whose picture is not there."""
        ids = [candidate.id for candidate in self.writer.listed(COLLECTION)]
        found = self.writer.get(COLLECTION, ids)
        lost = {id for id, one in found.items() if one.problem is not None}
        assert {type(found[id].problem) for id in lost} <= {DataLoss}
        return lost


def postgres_url(request) -> str:
    if not (postgres_path() / "pg_dump").exists():
        pytest.skip("PostgreSQL is here without pg_dump")
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def drill(request, tmp_path, index_processes, new_row):
    url = postgres_url(request) if request.param == "postgresql" else ""
    return Drill(tmp_path, url, index_processes, new_row)


@pytest.mark.parametrize(
    "more", [pytest.param(False, marks=needs_full_effort), True], ids=["at once", "overtaken"]
)
def test_a_log_that_is_older_than_the_pictures_is_put_back(drill, refusal, more):
    kept = drill.write("kept")
    drill.snapshot()
    drill.run("copy", slice(1))
    lost = drill.write("lost")
    drill.snapshot()
    drill.check()
    drill.run("copy", slice(1, None))
    put_back(drill)
    expected = drill.check()
    assert {i.partition("-")[0] for i in expected} == {"kept"}
    if more:
        drill.write("new")
        drill.write("newer")
        assert {i.partition("-")[0] for i in drill.check()} == {"kept", "new", "newer"}
    queries = np.eye(1, DIM, dtype=np.float32)
    for process in drill.processes:
        process.search(COLLECTION, queries, consistency=Consistency.SESSION, token=kept)
        refused = refusal(
            lambda process=process: process.search(
                COLLECTION, queries, consistency=Consistency.SESSION, token=lost
            )
        )
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "HISTORY_LOST",
        )
    assert drill.unreadable() == set()
    drill.stop()
    drill.start()
    drill.check()


def test_pictures_that_are_older_than_the_log_are_missed_by_their_rows_alone(drill):
    drill.write("early")
    drill.run("copy", slice(1, None))
    drill.write("late")
    drill.run("copy", slice(1))
    drill.write("lost")
    drill.check()
    for path in (drill.data / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    put_back(drill)
    assert {i.partition("-")[0] for i in drill.check()} == {"early", "late"}
    assert drill.unreadable() == {f"late-p{n}" for n in range(PICTURES)}


def test_a_bucket_is_put_back_with_its_log(request, tmp_path, s3, index_processes, new_row):
    url = s3.url("drill")
    bucket = open_objects(url)
    drill = Drill(tmp_path, postgres_url(request), index_processes, new_row, blobs_url=url)
    drill.write("kept")
    drill.snapshot()
    expected = drill.check()
    drill.run("copy", slice(1))
    copied = {one.key: bucket.get(one.key) for one in bucket.list("blobs")}
    drill.write("lost")
    drill.check()
    for one in bucket.list("blobs"):
        bucket.delete(one.key)
    drill.run("restore", slice(6))
    for key, data in copied.items():
        bucket.put(key, data)
    wait_for_answers(drill)
    assert drill.check() == expected
    assert drill.unreadable() == set()
    drill.stop()
    drill.start()
    assert drill.check() == expected


def put_back(drill: Drill) -> None:
    """Do as the page says: a log in a file needs its processes stopped, PostgreSQL does not."""
    if drill.kind == "sqlite":
        drill.stop()
    drill.run("restore")
    if drill.kind == "sqlite":
        drill.start()
    else:
        wait_for_answers(drill)


def wait_for_answers(drill: Drill) -> None:
    until = time.monotonic() + CALL_S
    while not _answers(drill):
        assert time.monotonic() < until
        time.sleep(0.1)


def _answers(drill: Drill) -> bool:
    try:
        drill.writer.describe(COLLECTION)
    except grpc.RpcError:
        return False
    return True
