"""Snapshots that are damaged, too old, half stored or of another shard: never a wrong answer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mmesh.api.index.v1 import index_pb2
from mmesh.content import Modality
from mmesh.local.ports import free_port
from mmesh.search import Consistency
from services.index.commands import verify
from tests.effort import EFFORT, patient

DIM = 8
COLLECTION = "snapshots"
CALL_S = patient(30.0)
FAILURES = "mmesh_index_snapshot_failures_total"
TEXTS, OTHERS = 250, 90
PURGE = {"purge_s": 0.2, "tombstone_s": 0.1}


class Filled:
    """A process, the collection in it, and what that must hold."""

    def __init__(self, process, oracle, new_row) -> None:
        self.process, self.oracle, self._new_row = process, oracle, new_row
        self._seeds = iter(range(1 << 30))

    def write(self, numbers: range, modality: Modality = Modality.TEXT) -> None:
        seed = next(self._seeds)
        rows = {
            f"{modality.value}-{n}": self._new_row((seed, n), DIM, modality, n=n, made=seed)
            for n in numbers
        }
        self.process.upsert(COLLECTION, rows)
        self.oracle.rows |= rows

    def delete(self, numbers: range, modality: Modality = Modality.TEXT) -> None:
        ids = [f"{modality.value}-{n}" for n in numbers]
        deleted, _ = self.process.delete(COLLECTION, ids)
        assert deleted == len(ids)
        for candidate_id in ids:
            del self.oracle.rows[candidate_id]

    def compact(self) -> None:
        request = index_pb2.CompactRequest(collection=COLLECTION)
        self.process.index.Compact(request, timeout=CALL_S)

    def snapshot(self) -> int:
        self.process.search(
            COLLECTION, np.eye(1, DIM, dtype=np.float32), consistency=Consistency.STRONG
        )
        request = index_pb2.CreateSnapshotRequest(collection=COLLECTION)
        return self.process.index.CreateSnapshot(request, timeout=CALL_S).number

    def restart(self, **settings: object) -> None:
        self.process.end()
        self.process.start(**settings)
        self.process.wait_ready()

    def check(self, process=None) -> None:
        """Compare all that a process finds, without asking it to be fresh first."""
        process = process or self.process
        queries = np.eye(1, DIM, dtype=np.float32)
        found = process.search(COLLECTION, queries, 1000)
        self.oracle.check(found, queries, 1000, holds=process.holds)


@pytest.fixture
def filled(index_processes, tmp_path, oracle, new_row) -> Filled:
    process = index_processes.start(tmp_path, fork=True, metrics_port=free_port())
    process.wait_ready()
    process.create(COLLECTION, DIM)
    return Filled(process, oracle, new_row)


def fill(filled: Filled) -> None:
    """Make two snapshots with some files in common, and writes that neither holds."""
    filled.write(range(TEXTS))
    filled.write(range(OTHERS), Modality.IMAGE)
    filled.write(range(OTHERS), Modality.IMAGE_TEXT)
    filled.compact()
    filled.delete(range(20))
    assert filled.snapshot() == 1
    filled.write(range(200, TEXTS + 50))
    filled.delete(range(30), Modality.IMAGE)
    assert filled.snapshot() == 2
    filled.write(range(40, 70))
    filled.delete(range(30, 40))
    filled.delete(range(40, 60), Modality.IMAGE)


def snapshot_files(folder: Path) -> tuple[Path, list[Path]]:
    """Return the newest manifest, and the files that it names."""
    manifest = max(folder.rglob("snapshots/**/*.json"))
    named = manifest.read_text()
    files = [path for path in manifest.parent.rglob("*") if path.is_file() and path.name in named]
    assert len(files) >= 4
    return manifest, sorted(files, key=lambda path: (path.stat().st_size, path.name))


def flip(path: Path, _other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path, _other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    here, there = path.read_bytes(), other.read_bytes()
    assert here != there
    path.write_bytes(there)
    other.write_bytes(here)


DAMAGES: list[Callable[[Path, Path], None]] = [flip, truncate, delete, swap]


def damaged_in_turn(files: list[Path]) -> Iterator[str]:
    """Damage each file in some ways, undoing the damage before; files next in size are swapped.

    With fewer ways than there are, each file has the next ones.
    """
    whole = {path: path.read_bytes() for path in files}
    for number, path in enumerate(files):
        other = files[number - 1] if number else files[1]
        ways = [DAMAGES[(number + n) % len(DAMAGES)] for n in range(EFFORT.damages)]
        for damage in ways:
            damage(path, other)
            yield f"{damage.__name__} of {path.name}"
            for changed in (path, other):
                changed.write_bytes(whole[changed])


@pytest.mark.timeout(240)
def test_no_damage_to_a_snapshot_changes_an_answer(filled, tmp_path):
    fill(filled)
    filled.restart()
    assert "restored" in filled.process.said()
    assert filled.process.metric(FAILURES) == 0
    filled.check()
    manifest, files = snapshot_files(tmp_path)
    filled.process.end()
    begun, restarts = time.monotonic(), 0
    for damage in damaged_in_turn([manifest, *files]):
        filled.restart()
        try:
            filled.check()
            if damage != f"delete of {manifest.name}":  # that is no damage: there is no such one
                assert filled.process.metric(FAILURES) > 0
                assert "snapshot damaged" in filled.process.said()
        except BaseException:
            print(f"after the {damage}:\n{filled.process.said()[-3000:]}")
            raise
        filled.process.end()
        restarts += 1
    print(f"{restarts} damages to {len(files) + 1} files in {time.monotonic() - begun:.0f} s")
    filled.restart()
    assert filled.process.metric(FAILURES) == 0
    filled.check()


def test_a_damaged_snapshot_falls_back_to_the_one_before(filled, tmp_path):
    fill(filled)
    manifest, _ = snapshot_files(tmp_path)
    truncate(manifest, manifest)
    filled.restart()
    filled.check()
    said = [json.loads(line) for line in filled.process.said().splitlines() if line[:1] == "{"]
    restored = [line for line in said if "restored" in line.values()]
    assert [line["snapshot"] for line in restored] == [1]


def test_a_process_killed_while_it_stores_a_snapshot_leaves_none_that_is_half(filled):
    fill(filled)
    choices, stored = random.Random(3), 2
    for number in range(EFFORT.snapshot_kills):
        filled.write(range(number * 5, number * 5 + 60))
        filled.process.search(
            COLLECTION, np.eye(1, DIM, dtype=np.float32), consistency=Consistency.STRONG
        )
        killer = threading.Timer(choices.uniform(0, 0.06), filled.process.end)
        killer.start()
        with contextlib.suppress(grpc.RpcError):
            stored = filled.snapshot()
        killer.join()
        filled.process.start()
        filled.process.wait_ready()
        assert filled.process.metric(FAILURES) == 0
        filled.check()
    assert filled.snapshot() > stored
    filled.restart()
    filled.check()


def test_a_snapshot_from_before_purged_deletions_is_not_used(filled):
    fill(filled)
    filled.restart(**PURGE)
    filled.delete(range(70, 200))
    time.sleep(5 * PURGE["purge_s"])
    filled.restart()
    filled.check()
    assert filled.snapshot() == 3
    filled.restart()
    assert "restored" in filled.process.said()
    filled.check()


def test_a_process_that_begins_from_nothing_needs_no_purged_deletions(filled):
    """There are more rows than are read at a time, and the purge reaches beyond the first ones."""
    for part in range(8):
        filled.write(range(part * 1000, part * 1000 + 1000))
    filled.delete(range(900))
    filled.restart(**PURGE)
    time.sleep(5 * PURGE["purge_s"])
    filled.write(range(8000, 8100))
    filled.restart(**PURGE)
    filled.check()


def test_a_process_knows_of_a_collection_that_another_has_just_made(
    filled, index_processes, tmp_path
):
    sleepy = index_processes.start(tmp_path, fork=True, poll_s=60.0)
    sleepy.wait_ready()
    filled.process.create("newest", DIM)
    request = index_pb2.CompactRequest(collection="newest")
    assert not sleepy.index.Compact(request, timeout=CALL_S).segments
    assert not sleepy.search("newest", np.eye(1, DIM, dtype=np.float32))[0].ids


def test_a_replica_that_slept_through_a_purge_forgets_what_was_deleted(
    filled, index_processes, tmp_path, eventually
):
    fill(filled)
    replica = index_processes.start(tmp_path, fork=True, purge_s=1e6)
    replica.wait_ready()
    filled.check(replica)
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        filled.restart(**PURGE)
        filled.delete(range(70, 200))
        time.sleep(5 * PURGE["purge_s"])
        filled.write(range(300, 310))
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    eventually(lambda: is_right(filled, replica), "the replica has caught up")
    replica.search(COLLECTION, np.eye(1, DIM, dtype=np.float32), consistency=Consistency.STRONG)
    filled.check(replica)


def is_right(filled: Filled, process) -> bool:
    try:
        filled.check(process)
    except AssertionError:
        return False
    return True


def test_another_number_of_shards_does_without_the_snapshots_of_before(
    filled, index_processes, tmp_path
):
    fill(filled)
    filled.process.end()
    for shard in range(3):
        process = index_processes.start(tmp_path, shard=shard, shard_count=3, fork=True)
        process.wait_ready()
        filled.check(process)


def test_verify_tells_a_sound_snapshot_from_a_damaged_one(filled, tmp_path):
    fill(filled)
    assert verify.main(["--data-dir", str(tmp_path)]) == 0
    _, files = snapshot_files(tmp_path)
    flip(files[-1], files[-1])
    assert verify.main(["--data-dir", str(tmp_path)]) == 1


@pytest.fixture
def replicas(index_processes, tmp_path, new_row):
    """Two replicas of one shard, with a collection that both hold."""
    made = [index_processes.start(tmp_path / "data", fork=True) for _ in range(2)]
    for process in made:
        process.wait_ready()
    made[0].create(COLLECTION, DIM)
    token = made[0].upsert(COLLECTION, {"a": new_row((0, 0), DIM, Modality.TEXT)})
    for process in made:
        process.search(COLLECTION, np.eye(1, DIM, dtype=np.float32), token=token)
    return made


@pytest.fixture
def snapshot_by(command_here, tmp_path):
    """Run `mmesh index snapshot` at processes; return exit code, names that stored, and stderr."""

    def run(*addresses):
        given = [word for one in addresses for word in ("--index-address", one)]
        command = ("index", "snapshot", COLLECTION, "--json", *given)
        code, output, errors = command_here(*command, env={}, folder=tmp_path)
        return code, set(json.loads(output)), errors

    return run


def test_the_command_has_one_replica_of_a_shard_store_its_snapshot(replicas, snapshot_by, tmp_path):
    addresses = [f"127.0.0.1:{process.port}" for process in replicas]
    code, stored, errors = snapshot_by(*addresses)
    assert (code, len(stored), errors) == (0, 1, "")
    assert len([*tmp_path.rglob("snapshots/**/*.json")]) == 1


def test_a_replica_that_cannot_store_a_snapshot_is_followed_by_the_next(replicas, snapshot_by):
    ended, running = (f"127.0.0.1:{process.port}" for process in replicas)
    replicas[0].end()
    code, stored, errors = snapshot_by(ended, running)
    assert (code, stored) == (0, {running})
    assert ended in errors  # its shard has a snapshot; that it does not answer is said
    assert snapshot_by(ended)[:2] == (1, set())
