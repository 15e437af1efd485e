import collections
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh.content import Modality
from mmesh.errors import StorageFull, Unavailable
from services.index.segments.delta import Delta
from services.index.segments.ids import hashes_of
from services.index.segments.segment import Segment
from services.index.store.manifest import encode
from services.index.store.objects import open_objects
from services.index.store.snapshot import Loaded, SnapshotContent, Snapshots, SnapshotSegment

EPOCH, SLOTS, DIM = "0123456789ab", range(128), 4
PLACE = f"snapshots/{EPOCH}/000-127"


@pytest.fixture(params=["folder", "s3"])
def objects(request, tmp_path):
    if request.param == "folder":
        return open_objects(tmp_path / "store")
    server = request.getfixturevalue("s3")
    return open_objects(server.url(f"tests/{uuid.uuid4().hex}"))


@pytest.fixture
def local(tmp_path):
    return open_objects(tmp_path / "store")


@pytest.fixture
def segment(tmp_path):
    """Make folders of files as a segment has them, all of them different."""

    def make(name, modality=Modality.TEXT):
        folder = tmp_path / "segments" / name
        folder.mkdir(parents=True)
        (folder / "segment.json").write_text(f'{{"rows": 9, "name": "{name}"}}')
        (folder / "index.faiss").write_bytes(os.urandom(5000))
        (folder / "rows.npz").write_bytes(os.urandom(3000))
        return SnapshotSegment(modality, folder, os.urandom(2))

    return make


@pytest.fixture
def load(tmp_path):
    """Load the newest snapshot as a new process would."""

    def load_newest(objects, epoch=EPOCH, slots=SLOTS, dim=DIM, **options) -> Loaded | None:
        into = tmp_path / "loaded" / uuid.uuid4().hex
        loaded = Snapshots(objects).load_newest(epoch, slots, into, dim=dim, **options)
        assert into.exists() == (loaded is not None)
        left = [p.name for p in into.parent.iterdir()] if into.parent.exists() else []
        assert not [name for name in left if name.startswith(".")], "a half-loaded snapshot is left"
        return loaded

    return load_newest


def content(*segments, seq=7, epoch=EPOCH, slots=SLOTS, dim=DIM):
    return SnapshotContent("collection", epoch, dim, "model", slots, seq, segments)


def bytes_of(segments):
    """Return everything that a snapshot must bring back."""
    return [
        (s.modality, s.alive_bits, {p.name: p.read_bytes() for p in s.folder.iterdir()})
        for s in segments
    ]


def failures(reason):
    labels = {"reason": reason}
    return REGISTRY.get_sample_value("mmesh_index_snapshot_failures_total", labels) or 0.0


class Wrapped:
    """A store that notes what it is asked; `before` and `after` may raise."""

    def __init__(self, objects):
        self.objects = objects
        self.calls = []

    def before(self):
        """Called before each call."""

    def after(self):
        """Called after each call, before its answer is seen."""

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments[0]))
            self.before()
            answer = getattr(self.objects, name)(*arguments)
            self.after()
            return answer

        return call

    def keys(self, name):
        return [key for called, key in self.calls if called == name]


# -- what is saved comes back


def test_a_snapshot_comes_back_as_it_was(objects, segment, load):
    segments = [segment("a"), segment("b", Modality.IMAGE), segment("c")]
    assert Snapshots(objects).save(content(*segments, seq=41)) == 1
    loaded = load(objects)
    assert (loaded.seq, loaded.number) == (41, 1)
    assert bytes_of(loaded.segments) == bytes_of(segments)


def test_an_empty_shard_has_a_snapshot_too(objects, load):
    Snapshots(objects).save(content(seq=3))
    assert load(objects) == Loaded(3, 1, ())


def test_where_there_is_none_none_is_loaded(objects, load):
    assert load(objects) is None


def test_the_newest_is_loaded_and_numbers_rise(objects, segment, load):
    snapshots, one = Snapshots(objects), segment("a")
    assert [snapshots.save(content(one, seq=seq)) for seq in (5, 6, 7)] == [1, 2, 3]
    assert load(objects).seq == 7


def test_collections_and_shards_have_snapshots_of_their_own(objects, segment, load):
    snapshots = Snapshots(objects)
    for seq, (epoch, slots) in enumerate(
        [(EPOCH, SLOTS), (EPOCH, range(128, 256)), (EPOCH, range(256)), ("ffff", SLOTS)]
    ):
        snapshots.save(content(segment(str(seq)), seq=seq, epoch=epoch, slots=slots))
    assert load(objects).seq == 0
    assert load(objects, slots=range(128, 256)).seq == 1
    assert load(objects, slots=range(256)).seq == 2
    assert load(objects, epoch="ffff").seq == 3
    assert load(objects, slots=range(86)) is None


def test_one_that_cannot_be_caught_up_is_passed_over(objects, segment, load):
    snapshots, one = Snapshots(objects), segment("a")
    for seq in (20, 10):  # a replica that lagged stored the newer one
        snapshots.save(content(one, seq=seq))
    assert load(objects, at_least_seq=10).seq == 10
    assert load(objects, at_least_seq=11).seq == 20
    assert load(objects, at_least_seq=21) is None


def test_a_folder_in_use_is_not_loaded_into(local, segment):
    one = segment("a")
    with pytest.raises(ValueError, match="is not empty"):
        Snapshots(local).load_newest(EPOCH, SLOTS, one.folder, dim=DIM)


def test_the_list_shows_all_and_what_is_damaged(objects, segment):
    snapshots = Snapshots(objects)
    snapshots.save(content(segment("a"), seq=4))
    snapshots.save(content(segment("b"), seq=5))
    snapshots.save(content(segment("c"), seq=6, epoch="ffff", slots=range(3, 4)))
    objects.put(f"{PLACE}/00000001.json", b"garbage")
    found = [(i.epoch, i.slots, i.number, i.problem) for i in snapshots.list()]
    assert found == [
        (EPOCH, SLOTS, 2, ""),
        (EPOCH, SLOTS, 1, "manifest: manifest"),
        ("ffff", range(3, 4), 1, ""),
    ]
    (info,) = snapshots.list("ffff")
    assert (info.manifest.seq, info.manifest.collection) == (6, "collection")
    assert info.manifest.size > 8000


# -- files are stored once


def test_files_that_this_process_stored_are_not_stored_again(objects, segment):
    store = Wrapped(objects)
    snapshots, old = Snapshots(store), segment("a")
    snapshots.save(content(old))
    store.calls.clear()
    new = segment("b")
    snapshots.save(content(replace(old, alive_bits=b"\1\2"), new))
    assert len(store.keys("put")) == 3 + 2  # the new segment, and the bits of both


def test_links_to_a_file_are_the_same_file(objects, segment, tmp_path):
    store = Wrapped(objects)
    snapshots, one = Snapshots(store), segment("a")
    snapshots.save(content(one))
    store.calls.clear()
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in one.folder.iterdir():
        (linked / path.name).hardlink_to(path)
    snapshots.save(content(replace(one, folder=linked)))
    assert store.keys("put") == []


def test_files_of_a_loaded_snapshot_are_not_stored_again(objects, segment, tmp_path):
    Snapshots(objects).save(content(segment("a")))
    store = Wrapped(objects)
    snapshots = Snapshots(store)
    loaded = snapshots.load_newest(EPOCH, SLOTS, tmp_path / "into", dim=DIM)
    assert snapshots.save(content(*loaded.segments)) == 2
    assert store.keys("put") == []


def test_no_more_is_remembered_than_the_newest_snapshot_names(local, segment):
    """Segments are merged away for as long as a process runs: what it knows of them must go."""
    store = Wrapped(local)
    snapshots = Snapshots(store)
    for number in range(4):
        newest = segment(f"s{number}")
        snapshots.save(content(newest, segment(f"t{number}"), seq=number))
    snapshots.save(content(newest, seq=5))
    (known,) = snapshots._known.values()
    assert len(known.hashes) == 3
    assert known.sound == {*known.hashes.values(), hashlib.sha256(newest.alive_bits).hexdigest()}
    store.calls.clear()
    snapshots.save(content(newest, seq=6))
    assert store.keys("put") == []
    snapshots.drop(EPOCH)
    assert not snapshots._known


def test_a_file_that_was_lost_is_stored_again(objects, segment, load):
    snapshots, one = Snapshots(objects), segment("a")
    snapshots.save(content(one))
    lost, cut, changed = [entry.key for entry in objects.list(f"{PLACE}/files")][:3]
    objects.delete(lost)
    objects.put(cut, b"")
    objects.put(changed, objects.get(changed)[::-1])
    assert load(objects) is None
    snapshots.save(content(one))  # has not looked into `changed`, so it trusts its own memory
    assert Snapshots(objects).save(content(one)) == 3
    assert bytes_of(load(objects).segments) == bytes_of([one])


# -- several replicas


def test_of_two_replicas_one_wins_each_number(objects, segment, load):
    ready, won = threading.Barrier(2), []

    def replicate(name):
        snapshots, one = Snapshots(objects, keep=100), segment(name)
        for step in range(6):
            ready.wait()
            number = snapshots.save(content(one, seq=step))
            won.append((number, name))

    threads = [threading.Thread(target=replicate, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(number for number, _ in won if number)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 6
    for number in reversed(numbers):  # each can be loaded when it is the newest
        assert load(objects).number == number
        objects.delete(f"{PLACE}/{number:08d}.json")


def test_a_replica_that_comes_second_loses_nothing(local, segment, load):
    class Overtaken(Wrapped):
        def before(self):
            if self.calls[-1][0] == "put_new":
                Snapshots(local).save(content(segment("other"), seq=9))

    assert Snapshots(Overtaken(local)).save(content(segment("mine"), seq=8)) is None
    assert load(local).seq == 9
    assert Snapshots(local).save(content(segment("later"), seq=10)) == 2


def test_a_first_try_whose_answer_was_lost_counts(local, segment):
    class Stuttering(Wrapped):
        def before(self):
            name, key = self.calls[-1]
            if name == "put_new":
                self.objects.put_new(key, self.sent)

        def put_new(self, key, data):
            self.sent = data
            return self.__getattr__("put_new")(key, data)

    assert Snapshots(Stuttering(local)).save(content(segment("a"))) == 1


# -- crashes


@dataclass
class Crash:
    """Raise at the nth call: before it is done, or when its answer is lost."""

    number: int
    answer_lost: bool

    def store(self, objects):
        crash = self

        class Crashing(Wrapped):
            def before(self):
                if len(self.calls) == crash.number and not crash.answer_lost:
                    raise Unavailable("crash")

            def after(self):
                if len(self.calls) == crash.number and crash.answer_lost:
                    raise Unavailable("crash")

        return Crashing(objects)


@pytest.mark.parametrize("answer_lost", [False, True])
def test_a_crash_anywhere_in_a_save_leaves_a_snapshot(local, segment, load, answer_lost):
    old, new = segment("a"), segment("b")
    Snapshots(local).save(content(old, seq=1))
    for step in range(1, 100):
        store = Crash(step, answer_lost).store(local)
        with suppress(Unavailable):
            Snapshots(store).save(content(old, new, seq=2))
            break
        loaded = load(local)
        expected = [old] if loaded.seq == 1 else [old, new]
        assert bytes_of(loaded.segments) == bytes_of(expected)
        if loaded.seq == 2:
            assert answer_lost
            assert store.calls[-1][0] == "put_new"
            local.delete(f"{PLACE}/{loaded.number:08d}.json")
    assert step > 12
    assert bytes_of(load(local).segments) == bytes_of([old, new])


@pytest.mark.parametrize("answer_lost", [False, True])
def test_a_crash_anywhere_in_a_prune_leaves_the_kept(local, segment, load, tmp_path, answer_lost):
    for seq in range(3):
        Snapshots(local).save(content(segment(str(seq)), seq=seq))
    for step in range(1, 100):
        copy = open_objects(shutil.copytree(tmp_path / "store", tmp_path / f"store-{step}"))
        try:
            store = Crash(step, answer_lost).store(copy)
            Snapshots(store, keep=2, grace_s=-10).prune(EPOCH, SLOTS)
            break
        except Unavailable:
            assert load(copy).seq == 2
            assert [i.manifest.seq for i in Snapshots(copy).list()][:2] == [2, 1]
    assert step > 10
    assert [i.manifest.seq for i in Snapshots(copy).list()] == [2, 1]


# -- damage


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "first byte flipped": lambda data, _: bytes([data[0] ^ 0x80]) + data[1:],
    "byte flipped": lambda data, _: flip(data),
    "last byte flipped": lambda data, _: data[:-1] + bytes([data[-1] ^ 1]),
    "truncated": lambda data, _: data[: len(data) // 2],
    "a byte short": lambda data, _: data[:-1],
    "a byte long": lambda data, _: data + b"\0",
    "empty": lambda data, _: b"",
    "zeros": lambda data, _: bytes(len(data)),
    "deleted": lambda data, _: None,
    "swapped": lambda _, other: other,
}


def write(objects, key, data):
    if data is None:
        objects.delete(key)
    else:
        objects.put(key, data)


class Shelf:
    """Two snapshots of a shard, and those of another collection and another shard.

    The second has the first's segment `a` with other living rows, `c` in place of `b`, and `d`.
    """

    def __init__(self, objects, segment):
        self.objects = objects
        a, b, c, d = segment("a"), segment("b", Modality.IMAGE), segment("c"), segment("d")
        self.first = [a, b]
        self.second = [replace(a, alive_bits=b"\3\4"), c, d]
        snapshots = Snapshots(objects)
        snapshots.save(content(*self.first, seq=1))
        self.of_first = self.stored()
        snapshots.save(content(*self.second, seq=2))
        self.keys_of_second = sorted(
            {*self.stored()} - {*self.of_first} | {f"{PLACE}/files/{self._sha(a)}"}
        )
        snapshots.save(content(d, seq=3, epoch="ffff"))
        snapshots.save(content(d, seq=4, slots=range(128, 256)))

    def stored(self):
        return [entry.key for entry in self.objects.list(PLACE)]

    @staticmethod
    def _sha(one):
        return hashlib.sha256((one.folder / "index.faiss").read_bytes()).hexdigest()

    def write(self, key, data):
        write(self.objects, key, data)

    def check(self, loaded, expected):
        """Assert that a load gave what was expected, to the last byte."""
        if expected is None:
            assert loaded is None
            return
        assert loaded.seq == expected
        assert bytes_of(loaded.segments) == bytes_of(self.first if expected == 1 else self.second)


@pytest.fixture
def shelf(objects, segment):
    return Shelf(objects, segment)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_gives_the_snapshot_before_it(shelf, load, damage):
    assert len(shelf.keys_of_second) == 1 + 6 + 3 + 1  # manifest, files, bits, one that both have
    intact = {key: shelf.objects.get(key) for key in shelf.stored()}
    for n, key in enumerate(shelf.keys_of_second):
        other = intact[shelf.keys_of_second[n - 1]]
        shelf.write(key, DAMAGES[damage](intact[key], other))
        shelf.check(load(shelf.objects), None if key in shelf.of_first else 1)
        shelf.write(key, intact[key])
        shelf.check(load(shelf.objects), 2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_both_snapshots_gives_none(shelf, load, damage):
    intact = {key: shelf.objects.get(key) for key in shelf.stored()}
    newest = f"{PLACE}/00000002.json"
    shelf.write(newest, DAMAGES[damage](intact[newest], b"{}"))
    for key in shelf.of_first:
        shelf.write(key, DAMAGES[damage](intact[key], b"other"))
        shelf.check(load(shelf.objects), None)
        shelf.write(key, intact[key])
        shelf.check(load(shelf.objects), 1)


OTHERS = {
    "another collection's": "snapshots/ffff/000-127/00000001.json",
    "another shard's": f"snapshots/{EPOCH}/128-255/00000001.json",
    "the one before": f"{PLACE}/00000001.json",
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_manifest_in_anothers_place_is_passed_over(shelf, load, other):
    shelf.write(f"{PLACE}/00000002.json", shelf.objects.get(OTHERS[other]))
    shelf.check(load(shelf.objects), 1)


def test_a_sound_manifest_under_a_higher_number_is_passed_over(shelf, load):
    shelf.write(f"{PLACE}/00000009.json", shelf.objects.get(f"{PLACE}/00000001.json"))
    shelf.check(load(shelf.objects), 2)


GARBAGE = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1" * 5000,
    "a list": b"[]",
    "an object": b"{}",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 200_000,
    "only a checksum": b'{"sha256":"00"}',
    "many bytes": b" " * (17 << 20),
    "a float": b'{"sha256":1e999}',
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_for_a_manifest_is_passed_over(shelf, load, garbage):
    shelf.write(f"{PLACE}/00000002.json", GARBAGE[garbage])
    shelf.check(load(shelf.objects), 1)


def _first_file(body):
    return body["segments"][0]["files"][0]


FORGERIES = {
    "path up": lambda b: _first_file(b).update(name="../../../escaped"),
    "path absolute": lambda b: _first_file(b).update(name="/escaped"),
    "path dots": lambda b: _first_file(b).update(name=".."),
    "path empty": lambda b: _first_file(b).update(name=""),
    "path zero": lambda b: _first_file(b).update(name="a\0b"),
    "path long": lambda b: _first_file(b).update(name="a" * 300),
    "path backslash": lambda b: _first_file(b).update(name="..\\escaped"),
    "name twice": lambda b: _first_file(b).update(name="rows.npz"),
    "name number": lambda b: _first_file(b).update(name=3),
    "hash path": lambda b: _first_file(b).update(sha256="../../" + "0" * 58),
    "hash unknown": lambda b: _first_file(b).update(sha256="0" * 64),
    "size huge": lambda b: _first_file(b).update(size=2**62),
    "size too huge": lambda b: _first_file(b).update(size=10**400),
    "size negative": lambda b: _first_file(b).update(size=-1),
    "size off": lambda b: _first_file(b).update(size=_first_file(b)["size"] - 1),
    "size true": lambda b: _first_file(b).update(size=True),
    "size float": lambda b: _first_file(b).update(size=float(_first_file(b)["size"])),
    "size none": lambda b: _first_file(b).pop("size"),
    "bits huge": lambda b: b["segments"][0]["alive"].update(size=2**62),
    "bits none": lambda b: b["segments"][0].pop("alive"),
    "modality": lambda b: b["segments"][0].update(modality="smell"),
    "files": lambda b: b["segments"][0].update(files=3),
    "segments": lambda b: b.update(segments=None),
    "seq text": lambda b: b.update(seq="2"),
    "seq huge": lambda b: b.update(seq=2**64),
    "number": lambda b: b.update(number=3),
    "epoch": lambda b: b.update(epoch="ffff"),
    "epoch path": lambda b: b.update(epoch=f"../snapshots/{EPOCH}"),
    "slots other": lambda b: b.update(slots=[0, 255]),
    "slots huge": lambda b: b.update(slots=[0, 10**30]),
    "slots turned": lambda b: b.update(slots=[127, 0]),
    "slots one": lambda b: b.update(slots=[0]),
    "dim": lambda b: b.update(dim=8),
    "dim zero": lambda b: b.update(dim=0),
    "format": lambda b: b.update(format=2),
    "format none": lambda b: b.pop("format"),
    "faiss newer": lambda b: b.update(faiss="99.0.0"),
    "faiss none": lambda b: b.update(faiss=""),
    "time": lambda b: b.update(create_time="yesterday"),
}


def signed(body):
    body.pop("sha256", None)
    body["sha256"] = hashlib.sha256(canonical(body)).hexdigest()
    return canonical(body)


def canonical(body):
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_manifest_that_asks_for_the_impossible_is_passed_over(local, segment, load, forgery):
    shelf, key = Shelf(local, segment), f"{PLACE}/00000002.json"
    body = json.loads(local.get(key))
    assert signed(body) == local.get(key)
    FORGERIES[forgery](body)
    local.put(key, signed(body))
    before = {p for p in shelf.first[0].folder.parents[1].rglob("*escaped*")}
    shelf.check(load(local), 1)
    assert before == {p for p in shelf.first[0].folder.parents[1].rglob("*escaped*")} == set()


def test_an_older_faiss_is_read(local, segment, load):
    shelf, key = Shelf(local, segment), f"{PLACE}/00000002.json"
    body = json.loads(local.get(key))
    body["faiss"] = "1.2.3"
    local.put(key, signed(body))
    shelf.check(load(local), 2)


def test_damage_is_counted_and_logged(shelf, load, caplog):
    key = next(k for k in shelf.keys_of_second if "/files/" in k and k not in shelf.of_first)
    shelf.write(key, b"other")
    before = failures("size")
    with caplog.at_level(logging.WARNING):
        load(shelf.objects)
    assert failures("size") == before + 1
    (record,) = [r for r in caplog.records if r.name == "services.index.store.snapshot"]
    assert record.getMessage() == "snapshot damaged"
    assert (record.number, record.reason) == (2, "size")
    assert key.endswith(record.file)


def test_a_file_that_cannot_be_read_gives_the_snapshot_before_it(local, segment, load):
    shelf = Shelf(local, segment)
    (bad,) = [k for k in shelf.keys_of_second if k.endswith(_digest(shelf.second[1], "rows.npz"))]

    class Unreadable(Wrapped):
        def before(self):
            if self.calls[-1] == ("download", bad):
                raise Unavailable("the disk is failing")

    shelf.check(load(Unreadable(local)), 1)


def _digest(one, name):
    return hashlib.sha256((one.folder / name).read_bytes()).hexdigest()


def test_a_store_that_is_away_is_said(local, segment, load):
    Shelf(local, segment)
    with pytest.raises(Unavailable):
        load(Crash(1, answer_lost=False).store(local))


def test_a_snapshot_stored_while_the_rest_fails_is_found(local, segment, load):
    shelf = Shelf(local, segment)
    newer = segment("newer")
    for key in (f"{PLACE}/00000001.json", f"{PLACE}/00000002.json"):
        local.put(key, b"damaged")

    class Saved(Wrapped):
        def before(self):
            if self.calls[-1] == ("get", f"{PLACE}/00000001.json"):
                Snapshots(local).save(content(newer, seq=9))

    assert bytes_of(load(Saved(local)).segments) == bytes_of([newer])
    assert shelf.objects is local


def test_a_snapshot_larger_than_the_disk_is_not_begun(local, segment, load, monkeypatch):
    Snapshots(local).save(content(segment("a")))
    usage = collections.namedtuple("usage", "total used free")  # as `shutil` answers
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(9000, 1000, 8000))
    with pytest.raises(StorageFull):
        load(local)


# -- deleting


def age(objects, seconds):
    for path in (objects._folder / "snapshots").rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_prune_keeps_the_newest_and_what_they_name(objects, segment, load):
    snapshots = Snapshots(objects, keep=2, grace_s=-10)
    shared, segments = segment("shared"), [segment(str(n)) for n in range(5)]
    for seq, one in enumerate(segments):
        snapshots.save(content(shared, one, seq=seq))
    assert snapshots.prune(EPOCH, SLOTS) == 3 + 3 * 4
    assert [info.number for info in snapshots.list()] == [5, 4]
    assert bytes_of(load(objects).segments) == bytes_of([shared, segments[4]])
    objects.delete(f"{PLACE}/00000005.json")
    assert bytes_of(load(objects).segments) == bytes_of([shared, segments[3]])
    assert snapshots.prune(EPOCH, SLOTS) == 4  # what only the deleted one named


def test_prune_leaves_young_files_alone(local, segment):
    snapshots = Snapshots(local, keep=1)
    local.put(f"{PLACE}/files/{'0' * 64}", b"of a snapshot that is about to be written")
    for seq in range(3):
        snapshots.save(content(segment(str(seq)), seq=seq))
    assert snapshots.prune(EPOCH, SLOTS) == 2  # manifests only
    age(local, 3500)
    assert snapshots.prune(EPOCH, SLOTS) == 0
    age(local, 3700)
    assert snapshots.prune(EPOCH, SLOTS) == 1 + 2 * 4


def test_prune_counts_only_sound_snapshots(objects, segment, load):
    snapshots = Snapshots(objects, keep=2, grace_s=-10)
    segments = [segment(str(n)) for n in range(5)]
    for seq, one in enumerate(segments):
        snapshots.save(content(one, seq=seq))
    for number in (2, 4, 5):
        objects.put(f"{PLACE}/{number:08d}.json", b"damaged")
    snapshots.prune(EPOCH, SLOTS)
    assert [info.number for info in snapshots.list()] == [5, 4, 3, 2, 1]
    assert load(objects).seq == 2
    assert bytes_of(load(objects).segments) == bytes_of([segments[2]])


def test_prune_leaves_alone_what_a_newer_mmesh_wrote(local, segment):
    shelf, key = Shelf(local, segment), f"{PLACE}/00000002.json"
    body = json.loads(local.get(key))
    local.put(key, signed(body | {"format": 2}))
    keys = shelf.stored()
    assert Snapshots(local, keep=1, grace_s=-10).prune(EPOCH, SLOTS) == 0
    assert shelf.stored() == keys


def test_an_old_file_that_nothing_names_is_stored_again_before_it_is_named(local, segment, load):
    store = Wrapped(local)
    snapshots, one = Snapshots(store, keep=1), segment("a")
    snapshots.save(content(one, seq=1))
    snapshots.save(content(segment("b"), seq=2))
    age(local, 3000)  # another replica's prune may be about to find `a` too old
    store.calls.clear()
    snapshots.save(content(one, seq=3))
    assert len(store.keys("put")) == 4
    snapshots.prune(EPOCH, SLOTS)
    assert load(local).seq == 3


def test_drop_removes_a_collection_and_no_other(objects, segment, load):
    snapshots = Snapshots(objects)
    snapshots.save(content(segment("a")))
    snapshots.save(content(segment("b"), slots=range(128, 256)))
    snapshots.save(content(segment("c"), epoch=f"{EPOCH}0"))
    assert snapshots.drop(EPOCH) == 2 * 5
    assert [info.epoch for info in snapshots.list()] == [f"{EPOCH}0"]
    assert load(objects) is None
    assert load(objects, epoch=f"{EPOCH}0") is not None


def test_shards_that_nobody_holds_any_more_lose_their_snapshots(local, segment, load):
    """One shard became two; a collection that nothing is written to keeps what it has."""
    snapshots, one = Snapshots(local), segment("a")
    whole, halves = range(256), (range(128), range(128, 256))
    for slots in (whole, halves[0]):
        snapshots.save(content(one, epoch="idle", slots=slots))
    snapshots.save(content(one, slots=whole))
    age(local, 7200)
    for slots in halves:
        snapshots.save(content(one, slots=slots))
    assert snapshots.drop_retired(10_000) == 0
    assert snapshots.drop_retired(3600) > 0
    assert load(local, slots=whole) is None
    for slots in halves:
        assert load(local, slots=slots) is not None
    for slots in (whole, halves[0]):
        assert load(local, epoch="idle", slots=slots) is not None


def test_a_manifest_is_the_same_bytes_again(local, segment):
    snapshots = Snapshots(local)
    snapshots.save(content(segment("a"), segment("b", Modality.IMAGE_TEXT)))
    (info,) = snapshots.list()
    assert encode(info.manifest) == local.get(f"{PLACE}/00000001.json")


# -- with real segments and a real outage


def real_segment(folder, seed, dim=16):
    """Write an exact segment of some rows of which row `seed` is dead."""
    n = 50 + seed  # so that no file is the same in two of them
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"{seed}-{row}" for row in range(n)]
    delta = Delta(dim, n)
    delta.append_many(ids, hashes_of(ids), [""] * n, vectors)
    delta.kill(np.array([seed]))
    folder.mkdir()
    delta.save(folder)
    return SnapshotSegment(Modality.TEXT, folder, bytes(delta.alive_bits())), vectors


def test_no_damage_changes_what_a_search_finds(local, load, tmp_path):
    first, vectors = real_segment(tmp_path / "first", 1)
    second, others = real_segment(tmp_path / "second", 2)
    Snapshots(local).save(content(first, seq=1, dim=16))
    Snapshots(local).save(content(second, seq=2, dim=16))
    newest, _ = Snapshots(local).list()
    keys = [f"{PLACE}/{newest.number:08d}.json"]
    keys += [f"{PLACE}/files/{file.sha256}" for file in newest.manifest.files()]
    assert len(keys) >= 5
    for key in keys:
        intact = local.get(key)
        for name, damage in DAMAGES.items():
            write(local, key, damage(intact, b"other"))
            check_search(load(local, dim=16), vectors, 1, name)
        local.put(key, intact)
        check_search(load(local, dim=16), others, 2, "none")


def check_search(loaded, vectors, seed, what):
    (stored,) = loaded.segments
    segment = Segment.open(stored.folder)
    segment.set_alive(stored.alive_bits)
    _, rows = segment.search(vectors, 1)
    found = segment.ids(rows[:, 0])
    assert [n for n, name in enumerate(found) if name != f"{seed}-{n}"] == [seed], what


def test_an_outage_of_the_store_is_said_and_ends(s3, segment, load):
    objects = open_objects(s3.url(f"tests/{uuid.uuid4().hex}"))
    snapshots, old, new = Snapshots(objects), segment("old"), segment("new")
    snapshots.save(content(old, seq=1))
    s3.kill()
    try:
        for call in (
            lambda: snapshots.save(content(old, new, seq=2)),
            lambda: load(objects),
            lambda: snapshots.prune(EPOCH, SLOTS),
        ):
            with pytest.raises(Unavailable):
                call()
    finally:
        s3.start()
    assert load(objects).seq == 1
    assert snapshots.save(content(old, new, seq=2)) == 2
    assert bytes_of(load(objects).segments) == bytes_of([old, new])
