"""Pictures that no row names go after the grace period; those that one names stay."""

from __future__ import annotations

import hashlib
import json
import os
import uuid

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from mmesh.content import Content, Image
from mmesh.errors import DataLoss, FailedPrecondition
from services.index.log.rows import parts_to_json
from services.index.store.blobs import ContentBlobs, key_of
from services.index.store.garbage import (
    CLOCKS_S,
    COMMIT_S,
    LEAST_GRACE_S,
    Garbage,
    Names,
    Swept,
    Tally,
)
from services.index.store.objects import Entry, open_objects

DAY = 86400.0
HOUR = 3600.0


class Memory:
    """Objects in memory with a clock; `pause` is called before whatever is asked of them."""

    def __init__(self) -> None:
        self.now = 1e9
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.pause = lambda: None

    def clock(self) -> float:
        return self.now

    def put(self, key, data):
        self.pause()
        self.objects[key] = data, self.now

    def put_new(self, key, data):
        if key in self.objects:
            return False
        self.put(key, data)
        return True

    def get(self, key):
        self.pause()
        if key not in self.objects:
            raise DataLoss("a stored object is missing")
        return self.objects[key][0]

    def size(self, key):
        self.pause()
        return len(self.objects[key][0]) if key in self.objects else None

    def modified(self, key):
        return self.objects[key][1] if key in self.objects else None

    def list(self, prefix):
        self.pause()
        return [
            Entry(k, len(data), modified)
            for k, (data, modified) in sorted(self.objects.items())
            if k.startswith(f"{prefix}/")
        ]

    def delete(self, key):
        self.pause()
        self.objects.pop(key, None)


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def blobs(memory):
    return ContentBlobs(memory, clock=memory.clock)


@pytest.fixture
def garbage(memory):
    return Garbage(memory, DAY, clock=memory.clock)


def sweep(garbage, *names, **options):
    return garbage.sweep(lambda: names, **options)


def test_a_picture_goes_a_grace_period_after_it_was_first_seen_without_a_row(
    memory, blobs, garbage
):
    kept, gone = blobs.put(b"kept"), blobs.put(b"gone!")
    memory.now += 100 * DAY
    assert sweep(garbage, kept, gone) == Swept(named=Tally(2, 9))
    assert sweep(garbage, kept) == Swept(named=Tally(1, 4), waiting=Tally(1, 5))
    memory.now += DAY - 1
    assert sweep(garbage, kept).removed == Tally()
    assert blobs.get(gone) == b"gone!"
    memory.now += 1
    assert sweep(garbage, kept) == Swept(named=Tally(1, 4), removed=Tally(1, 5))
    assert sweep(garbage, kept) == Swept(named=Tally(1, 4))
    assert blobs.get(kept) == b"kept"
    assert set(memory.objects) == {key_of(kept)}  # no notes are left either


def test_a_picture_that_is_named_again_begins_anew(memory, blobs, garbage):
    name = blobs.put(b"picture")
    sweep(garbage)
    memory.now += DAY / 2
    sweep(garbage, name)  # a log was put back
    memory.now += DAY / 2
    assert sweep(garbage).waiting == Tally(1, 7)
    assert blobs.get(name) == b"picture"


def test_a_dry_run_says_the_same_and_changes_nothing(memory, blobs, garbage):
    blobs.put(b"gone")
    sweep(garbage)
    memory.now += DAY
    before = dict(memory.objects)
    expected = sweep(garbage, dry_run=True)
    assert memory.objects == before
    assert sweep(garbage) == expected == Swept(removed=Tally(1, 4))


@pytest.mark.parametrize("notes", [b"", b"[]", b"{", b'{"a": null}', b"\xff"])
def test_notes_that_are_lost_or_damaged_only_delay(memory, blobs, garbage, notes):
    name = blobs.put(b"picture")
    sweep(garbage)
    memory.now += DAY
    memory.put(f"garbage/{name[:2]}.json", notes)
    assert sweep(garbage).waiting == Tally(1, 7)
    memory.now += DAY
    assert sweep(garbage).removed == Tally(1, 7)


def test_what_is_no_picture_is_left_alone(memory, garbage):
    for key in ("blobs/ab/other", "snapshots/a/b", "blobs/zz/" + "ab" * 31):
        memory.put(key, b"x")
    before = dict(memory.objects)
    for _ in range(3):
        memory.now += 9 * DAY
        assert sweep(garbage) == Swept()
    assert memory.objects == before


def test_pictures_of_before_copies_had_numbers_are_collected_too(memory, garbage):
    digest = hashlib.sha256(b"old").hexdigest()
    memory.put(key_of(digest), b"old")
    assert sweep(garbage, digest).named == Tally(1, 3)
    sweep(garbage)
    memory.now += DAY
    assert sweep(garbage).removed == Tally(1, 3)


def test_processes_take_turns(memory, garbage):
    other = Garbage(memory, DAY, clock=memory.clock)
    assert garbage.take_turn(HOUR)
    assert not other.take_turn(HOUR)
    memory.now += HOUR
    assert other.take_turn(HOUR)
    assert not garbage.take_turn(HOUR)


def test_a_store_is_swept_by_the_log_that_it_belongs_to_only(memory, garbage):
    other = Garbage(memory, DAY, clock=memory.clock)
    garbage.claim("first")
    other.claim("first")
    with pytest.raises(FailedPrecondition, match="--adopt"):
        other.claim("second")
    other.claim("second", adopt=True)
    other.claim("second")
    with pytest.raises(FailedPrecondition):
        garbage.claim("first")


def test_a_sweep_that_fails_in_the_rows_removes_nothing(memory, blobs, garbage):
    blobs.put(b"picture")
    sweep(garbage)
    memory.now += DAY

    def broken():
        yield "ab" * 32
        raise DataLoss("the log")

    with pytest.raises(DataLoss):
        garbage.sweep(broken)
    assert any(key.startswith("blobs/") for key in memory.objects)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_real_store_is_swept(kind, tmp_path, request):
    where = tmp_path if kind == "folder" else request.getfixturevalue("s3").url(uuid.uuid4().hex)
    objects = open_objects(where)
    blobs = ContentBlobs(objects)
    kept, gone = blobs.put(b"kept"), blobs.put(b"gone")
    garbage = Garbage(objects, -1.0)  # no grace at all
    assert garbage.take_turn(60.0)
    assert not garbage.take_turn(60.0)
    assert sweep(garbage, kept) == Swept(named=Tally(1, 4), removed=Tally(1, 4))
    assert blobs.get(kept) == b"kept"
    with pytest.raises(DataLoss):
        blobs.get(gone)


def test_names_are_told_apart():
    inside, outside = [os.urandom(32).hex() for _ in range(2000)], os.urandom(32).hex()
    names = Names(inside)
    assert all(name in names for name in inside)
    assert outside not in names
    assert outside not in Names([])


class Writers(RuleBasedStateMachine):
    """Writers, readers, deletions and two collectors, each at any step of each other.

    Whatever is asked of the store is a place where all others may go on: a collector stands still
    there for as long as it takes them, a writer stores and commits, the other collector sweeps.
    """

    stored = Bundle("stored")
    CONTENTS = st.sampled_from([b"a", b"bb", b"ccc"])
    WAITS = st.sampled_from([1.0, COMMIT_S / 2, COMMIT_S, HOUR, LEAST_GRACE_S, DAY])

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.blobs = ContentBlobs(self.memory, clock=self.memory.clock)
        self.collectors = [
            Garbage(self.memory, LEAST_GRACE_S, clock=lambda late=late: self.memory.now + late)
            for late in (0.0, CLOCKS_S / 2)
        ]
        self.rows: dict[int, str] = {}
        self.pending: list[tuple[int, str, float]] = []
        self.interruptions: list[tuple] = []
        self.depth = 0
        self.memory.pause = self.interrupt

    def interrupt(self) -> None:
        """Let others go on in the midst of a call, as was decided beforehand."""
        if self.interruptions and self.depth < 3:
            self.depth += 1
            self.act(*self.interruptions.pop())
            self.depth -= 1

    def act(self, kind: str, row: int, content: bytes, wait: float) -> None:
        if kind == "store":
            since = self.memory.now
            self.pending.append((row, self.blobs.put(content), since))
        elif kind == "commit" and self.pending:
            row, name, since = self.pending.pop(0)
            if self.memory.now - since <= COMMIT_S:
                self.rows[row] = name
        elif kind == "delete":
            self.rows.pop(row, None)
        elif kind == "wait":
            self.memory.now += wait
        elif kind == "sweep":
            self.collectors[row % 2].sweep(lambda: list(self.rows.values()))

    ACTIONS = st.tuples(
        st.sampled_from(["store", "commit", "commit", "delete", "wait", "sweep"]),
        st.integers(0, 3),
        CONTENTS,
        WAITS,
    )

    @rule(action=ACTIONS, meanwhile=st.lists(ACTIONS, max_size=12), gap=st.integers(0, 40))
    def step(self, action, meanwhile, gap):
        skipped = [("none", 0, b"", 0.0)]
        self.interruptions = [one for act in meanwhile for one in [act, *skipped * gap]]
        self.act(*action)
        self.interruptions = []

    @invariant()
    def every_row_has_its_picture(self):
        for name in self.rows.values():
            assert key_of(name) in self.memory.objects


TestWriters = Writers.TestCase  # 2 CPU seconds


def test_the_json_of_parts_names_copies_and_equal_content_is_the_same_request(memory, blobs):
    from services.index.log.rows import pictures_of, same_parts

    tricky = f'"image": "{"ab" * 32}.1f"'
    content = Content((Image(b"picture", "image/png"), tricky))
    first = parts_to_json(content, blobs)
    memory.now += HOUR
    second = parts_to_json(content, blobs)
    assert first != second
    assert same_parts(first) == same_parts(second)
    assert json.loads(same_parts(first))[1] == {"text": tricky}
    (name,) = pictures_of(first)
    assert blobs.get(name) == b"picture"
