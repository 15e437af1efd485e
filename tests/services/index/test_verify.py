import json
import subprocess
import sys

import numpy as np
import pytest

from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from mmesh.errors import CollectionNotFound
from services.index.commands import verify
from services.index.log.ledger import Delete, Upsert
from services.index.log.log import Log
from services.index.log.rows import NewCandidate
from services.index.segments.delta import Delta
from services.index.segments.ids import hashes_of
from services.index.slots import SLOTS, slot_of, slots_of
from services.index.store.objects import open_objects
from services.index.store.snapshot import SnapshotContent, Snapshots, SnapshotSegment

DIM = 8
ALL = range(SLOTS)


def vector_of(candidate_id, version=0):
    seed = int.from_bytes(candidate_id.encode(), "little") + version
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def new(candidate_id, modality=Modality.TEXT, attributes='{"lang": "de"}', version=0):
    vector = vector_of(candidate_id, version).tobytes()
    parts = '[{"text": "x"}]'
    return NewCandidate(candidate_id, slot_of(candidate_id), modality, attributes, parts, vector)


class Place:
    """A data folder with a log and snapshots, and what is needed to store one."""

    def __init__(self, tmp_path):
        self.data, self.tmp_path = tmp_path / "data", tmp_path
        self.data.mkdir()
        self.log = Log(f"sqlite:///{self.data / 'log.db'}")
        self.log.create_collection("c", DIM, "model", CollectionSettings())
        self.objects = open_objects(self.data)
        self.snapshots = Snapshots(self.objects)
        self._folders = 0

    def write(self, *candidates, collection="c"):
        (written,) = self.log.write([Upsert(collection, candidates, lambda types: types)])
        assert written.count == len(candidates)

    def delete(self, *ids):
        (written,) = self.log.write([Delete("c", ids)])
        assert written.count == len(ids)

    def segment(self, rows, modality):
        self._folders += 1
        folder = self.tmp_path / f"segment-{self._folders}"
        folder.mkdir()
        delta = Delta(DIM, max(1, len(rows)))
        ids = [row[0] for row in rows]
        vectors = np.array([row[1] for row in rows], np.float32).reshape(-1, DIM)
        delta.append_many(ids, hashes_of(ids), [row[2] for row in rows], vectors)
        delta.save(folder)
        return SnapshotSegment(modality, folder, bytes(delta.alive_bits()))

    def save(self, slots=ALL, change=None, collection="c", more=()):
        """Store a snapshot of what the log has now; `change` may spoil the rows before."""
        row = self.log.collection(collection)
        rows, seq = self.log.read_after(collection, row.epoch, 0, slots, 100_000, DIM)
        segments = []
        for modality in Modality:
            of = [
                [rows.ids[n], rows.vectors[n].copy(), rows.attributes[n]]
                for n in range(len(rows))
                if rows.modalities[n] is modality and not rows.deleted[n]
            ]
            of = change(of) if change and of else of
            half = len(of) // 2
            segments += [self.segment(part, modality) for part in (of[:half], of[half:]) if part]
        self.snapshots.save(
            SnapshotContent(collection, row.epoch, DIM, "model", slots, seq, [*segments, *more])
        )

    def verify(self, **options):
        return verify.verify(self.log, self.snapshots, self.tmp_path, **options)


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.write(*[new(f"text-{n}") for n in range(30)])
    place.write(*[new(f"image-{n}", Modality.IMAGE, "") for n in range(20)])
    place.delete("text-3", "image-4")
    yield place
    place.log.close()


def test_a_snapshot_of_the_log_equals_it(place):
    place.save()
    (shard,) = place.verify()
    assert shard.is_sound
    assert (shard.number, shard.seq, shard.counts) == (1, 52, verify.Counts(candidates=48))
    assert not verify.failed([shard])


def test_each_shard_is_verified(place):
    place.save(slots=slots_of(0, 2))
    place.save(slots=slots_of(1, 2))
    shards = place.verify()
    assert [(s.first_slot, s.last_slot) for s in shards] == [(0, 127), (128, 255)]
    assert all(s.is_sound for s in shards)
    assert sum(s.counts.candidates for s in shards) == 48


def test_what_was_written_since_is_stale_and_no_fault(place):
    place.save()
    place.write(new("text-1", version=1), new("text-2", Modality.IMAGE), new("later"))
    place.delete("text-5", "image-6")
    (shard,) = place.verify()
    assert shard.is_sound
    assert shard.counts == verify.Counts(candidates=48, stale=4)


def test_a_candidate_that_is_not_there_is_missing(place):
    place.save(change=lambda rows: rows[1:])
    (shard,) = place.verify()
    assert shard.problem == "2 missing"
    assert verify.failed([shard])


def _turned(rows):
    rows[0][1] = np.roll(rows[0][1], 1)
    return rows


def _renamed(rows):
    rows[0][2] = '{"lang": "fr"}'
    return rows


@pytest.mark.parametrize("change", [_turned, _renamed])
def test_another_vector_or_attribute_differs(place, change):
    place.save(change=change)
    (shard,) = place.verify()
    assert shard.counts == verify.Counts(candidates=48, differing=2)
    assert shard.problem == "2 differing"


def test_not_a_number_differs(place):
    def spoil(rows):
        rows[0][1][:] = np.nan
        return rows

    place.save(change=spoil)
    assert place.verify()[0].problem == "2 differing"


def test_another_modality_differs(place):
    place.write(new("odd", Modality.IMAGE_TEXT))
    row = place.log.collection("c")
    more = [place.segment([["odd", vector_of("odd"), '{"lang": "de"}']], Modality.TEXT)]
    place.save(change=lambda rows: [r for r in rows if r[0] != "odd"], more=more)
    (shard,) = place.verify()
    assert shard.seq == row.seq
    assert shard.problem == "1 differing"


def test_a_candidate_that_is_there_twice_differs(place):
    more = [place.segment([["text-1", vector_of("text-1"), '{"lang": "de"}']], Modality.TEXT)]
    place.save(more=more)
    (shard,) = place.verify()
    assert shard.counts == verify.Counts(candidates=49, differing=1)


def test_what_was_deleted_or_never_written_is_extra(place):
    rows = [[name, vector_of(name), ""] for name in ("text-3", "never")]
    place.save(more=[place.segment(rows, Modality.TEXT)])
    (shard,) = place.verify()
    assert shard.counts == verify.Counts(candidates=50, extra=2)
    assert shard.problem == "2 extra"


def test_a_damaged_snapshot_is_said_and_the_one_before_it_verified(place):
    place.save()
    place.save()
    epoch = place.log.collection("c").epoch
    place.objects.put(f"snapshots/{epoch}/000-255/00000002.json", b"damaged")
    (shard,) = place.verify()
    assert (shard.number, shard.passed_over, shard.is_sound) == (1, 1, True)


def test_where_no_snapshot_is_sound_that_is_the_problem(place):
    place.save()
    epoch = place.log.collection("c").epoch
    place.objects.put(f"snapshots/{epoch}/000-255/00000001.json", b"damaged")
    (shard,) = place.verify()
    assert (shard.number, shard.problem) == (0, "no snapshot is sound")
    assert verify.failed([shard])


def test_one_that_nobody_can_catch_up_from_is_expired(place):
    place.save()
    place.delete("text-7")
    assert place.log.purge(-10) > 0
    (shard,) = place.verify()
    assert (shard.expired, shard.problem, shard.is_sound) == (True, "", False)
    assert verify.failed([shard])  # nothing was compared


def test_one_that_is_ahead_of_the_log_is_a_problem(place):
    place.save()
    other = Log(f"sqlite:///{place.tmp_path / 'restored.db'}")
    other.create_collection("c", DIM, "model", CollectionSettings())
    row = place.log.collection("c")

    class Restored:
        """The log as a backup had it: empty."""

        def collections(self):
            return [row]

        def collection(self, name):
            return other.collection(name)

        def read_after(self, name, epoch, *arguments):
            return other.read_after(name, other.collection(name).epoch, *arguments)

    (shard,) = verify.verify(Restored(), place.snapshots, place.tmp_path)
    other.close()
    assert shard.problem == "reflects 52 writes where the log has 0"


def test_many_pages_of_the_log_are_compared(tmp_path):
    place = Place(tmp_path)
    for start in range(0, 12_000, 4000):
        place.write(*[new(f"t{n}") for n in range(start, start + 4000)])
    place.save(change=lambda rows: rows[:-1])
    (shard,) = place.verify()
    place.log.close()
    assert shard.counts == verify.Counts(candidates=11_999, missing=1)


def test_without_snapshots_nothing_is_verified(place):
    assert place.verify() == []
    assert verify.failed([])


def test_an_unknown_collection_is_said(place):
    with pytest.raises(CollectionNotFound):
        place.verify(collection="unknown")


def run(*arguments):
    command = [sys.executable, "-m", "services.index.commands.verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_prints_and_says_by_its_exit_code(place):
    place.save()
    done = run("--data-dir", place.data)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
    place.write(new("text-3"))
    place.save(change=lambda rows: rows[1:])
    done = run("--data-dir", place.data, "--json", "--collection", "c")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["failed"]
    (shard,) = answer["shards"]
    assert (shard["collection"], shard["missing"], shard["is_sound"]) == ("c", 2, False)


def test_the_command_makes_no_log_where_there_is_none(tmp_path):
    done = run("--data-dir", tmp_path / "wrong")
    assert done.returncode == 1
    assert "there is no log" in done.stderr
    assert not (tmp_path / "wrong").exists()
