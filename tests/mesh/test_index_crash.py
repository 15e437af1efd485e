"""Index processes killed at random moments of ingest, deletion and search, again and again.

The seed of a round fixes what is written, who is killed and when; not how the processes interleave.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from mmesh.content import Modality
from mmesh.filters import Compare, Operator
from mmesh.search import Consistency
from tests.effort import EFFORT, patient

SEED = int(os.environ.get("MMESH_CRASH_SEED", "20261"))
DIM, BUCKETS, WRITERS = 8, 4, 3
STEADY, CROWD = 4, 330
"""Candidates of a writer that always live; living ones above which it deletes."""
ANSWERED_S = patient(15.0)
TOLERANCE = 2e-3
COLLECTION = "crash"
PLACES = [
    {"shard": 0, "snapshot_s": 0.5},
    {"shard": 0, "seal_rows": 4096, "quiet_s": 1e6, "purge_s": 0.5, "tombstone_s": 0.5},
    {"shard": 1, "snapshot_s": 1.0, "seal_rows": 200},
]
"""Two shards, the first one twice: one that builds and stores snapshots all the time, one that does
not but purges the log, and one between."""


@dataclass
class Order:
    """A write, as it is sent until it is acknowledged. `rows` is None for a deletion."""

    request_id: str
    ids: list[str]
    rows: dict[str, object] | None

    def send(self, process) -> tuple[int, str]:
        """Return how many candidates it wrote or deleted, and its token."""
        if self.rows is None:
            return process.delete(COLLECTION, self.ids, self.request_id, timeout=ANSWERED_S)
        token = process.upsert(COLLECTION, self.rows, self.request_id, timeout=ANSWERED_S)
        return len(self.ids), token


@dataclass
class Journal:
    """What one writer was told is stored; nobody else writes its ids."""

    rows: dict[str, object] = field(default_factory=dict)
    graves: set[str] = field(default_factory=set)
    """Deleted, and never to be written again."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """First and last sequence of each write."""
    token: str = ""
    pending: Order | None = None
    repeated: int = 0

    def acknowledge(self, order: Order, count: int, token: str) -> None:
        seq = int(token.rpartition(":")[2])
        expected = len(order.ids) if order.rows else sum(i in self.rows for i in order.ids)
        assert count == expected, f"{order.request_id}: {count} candidates instead of {expected}"
        if count:
            self.spans.append((seq - count + 1, seq))
        self.token = token  # before the graves: who sees a grave sees a token that covers it
        self.rows |= order.rows or {}
        if order.rows is None:
            for candidate_id in order.ids:
                self.rows.pop(candidate_id, None)
            self.graves |= {i for i in order.ids if _is_forever(i)}
        self.pending = None


def _is_forever(candidate_id: str) -> bool:
    """Tell whether a candidate stays deleted: every second one does."""
    return _number(candidate_id) % 2 == 0


def _number(candidate_id: str) -> int:
    return int(candidate_id.partition("-")[2])


def _expect_unavailable(error: grpc.RpcError) -> None:
    """Whoever is killed, or not up yet, must not be taken for one that gives an answer."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        raise error


class Writer:
    """Writes batches of its own candidates, one after another, to any process."""

    def __init__(self, number: int, new_row) -> None:
        self.journal = Journal()
        self.steady = [f"w{number}-{n}" for n in range(STEADY)]
        self._number, self._new_row = number, new_row
        self._new_ids = (f"w{number}-{n}" for n in itertools.count(STEADY))
        self._gone: list[str] = []
        self._versions = itertools.count()

    def run(self, processes: Sequence, seed: str, stop: threading.Event) -> None:
        """Write until told to stop; what has no answer then stays pending."""
        choices = random.Random(f"{seed} writer {self._number}")
        while not stop.is_set():
            order = self.journal.pending = self._next(choices)
            insists = choices.random() < 0.5  # else the caller repeats it after the restart
            while self.journal.pending is not None:
                try:
                    answer = order.send(choices.choice(processes))
                    self.journal.acknowledge(order, *answer)
                except grpc.RpcError as error:
                    _expect_unavailable(error)
                    self.journal.repeated += 1
                    if not insists or stop.is_set():
                        return
                    time.sleep(0.01)

    def _next(self, choices: random.Random) -> Order:
        version, journal = next(self._versions), self.journal
        request_id = f"w{self._number}-{version}"
        kind = choices.random()
        if version == 0 or kind < 0.1:  # the same vectors again, under a new version
            return Order(
                request_id, self.steady, {i: self._row(i, 0, version) for i in self.steady}
            )
        living = sorted(set(journal.rows) - set(self.steady))
        if living and (kind < 0.35 or len(living) > CROWD):
            doomed = choices.sample(living, min(len(living), choices.randint(1, 40)))
            ids = list({i: 0 for i in [*doomed, *self._gone[-2:]]})  # some are gone already
            self._gone += doomed
            return Order(request_id, ids, None)
        old = [*living, *(i for i in self._gone[-200:] if not _is_forever(i))]
        old = sorted(set(old))
        ids = choices.sample(old, min(len(old), choices.randint(0, 30)))
        ids += itertools.islice(self._new_ids, choices.randint(1, 30))
        return Order(request_id, ids, {i: self._row(i, version, version, choices) for i in ids})

    def _row(self, candidate_id: str, of: int, version: int, choices: random.Random | None = None):
        modality = Modality.TEXT
        if choices is not None:
            modality = choices.choices(list(Modality), [8, 1, 1])[0]
        number = _number(candidate_id)
        return self._new_row(
            (self._number, number, of), DIM, modality, version=version, bucket=number % BUCKETS
        )

    def settle(self, process, choices: random.Random, processes: Sequence) -> None:
        """See that the pending write is wholly there or not at all; repeat it."""
        order = self.journal.pending
        if order is None:
            return
        stored = process.get(COLLECTION, order.ids)
        now = {i: candidate.attributes["version"] for i, candidate in stored.items()}
        before = {
            i: self.journal.rows[i].attributes["version"]
            for i in order.ids
            if i in self.journal.rows
        }
        after = {i: row.attributes["version"] for i, row in (order.rows or {}).items()}
        assert now in (before, after), f"half of {order.request_id} is stored: {now}"
        self.journal.acknowledge(order, *order.send(choices.choice(processes)))


class Searcher:
    """Searches any process while others write; checks what must hold at any time."""

    def __init__(self, writers: Sequence[Writer], new_row) -> None:
        self._writers, self._new_row = writers, new_row
        self.searches = 0

    def run(self, processes: Sequence, seed: str, stop: threading.Event) -> None:
        choices = random.Random(f"{seed} searcher")
        while not stop.is_set():
            process = choices.choice(processes)
            try:
                if choices.random() < 0.5:
                    self._look_for_graves(process, choices)
                else:
                    self._look_for_steady(process, choices)
                self.searches += 1
            except grpc.RpcError as error:
                _expect_unavailable(error)
                time.sleep(0.01)

    def _look_for_graves(self, process, choices: random.Random) -> None:
        journals = [writer.journal for writer in self._writers]
        graves = set().union(*[list(journal.graves) for journal in journals])
        asked = self._freshness(choices, [journal.token for journal in journals])
        query = self._new_row(choices.randrange(1 << 30), DIM).vector
        found = process.search(COLLECTION, query[None], 50, timeout=ANSWERED_S, **asked)
        for hits in found:
            assert len(set(hits.ids)) == len(hits.ids), f"doubled: {sorted(hits.ids)}"
            assert graves.isdisjoint(hits.ids), f"deleted: {graves & set(hits.ids)}, {asked}"

    def _look_for_steady(self, process, choices: random.Random) -> None:
        journal = choices.choice(self._writers).journal
        steady = [i for i in list(journal.rows) if _number(i) < STEADY and process.holds(i)]
        if not steady:
            return
        wanted = choices.choice(steady)
        row = journal.rows[wanted]
        asked = self._freshness(choices, [journal.token])
        found = process.search(
            COLLECTION, row.vector[None], 3, modalities=[Modality.TEXT], timeout=ANSWERED_S, **asked
        )[0]
        assert wanted in found.ids, f"{wanted} lives all the time but is not found, {asked}"
        place = found.ids.index(wanted)
        assert abs(found.scores[place] - 1) < TOLERANCE
        version = found.attributes[place]["version"]
        assert version >= row.attributes["version"], f"{wanted} is an old one, {asked}"

    @staticmethod
    def _freshness(choices: random.Random, tokens: Sequence[str]) -> dict[str, object]:
        if choices.random() < 0.2:
            return {"consistency": Consistency.STRONG}
        newest = max(tokens, key=lambda token: int(token.rpartition(":")[2] or 0))
        return {"token": newest} if newest else {}


@dataclass
class World:
    """The processes, who uses them, and what was found to be wrong."""

    processes: list
    writers: list[Writer]
    searcher: Searcher
    kills: int = 0
    lost: int = 0
    doubled: int = 0
    resurrected: int = 0

    def living(self) -> dict[str, object]:
        return {i: row for writer in self.writers for i, row in writer.journal.rows.items()}

    def play(self, seed: str) -> None:
        """One round: load, death, restart, and a look at everything."""
        choices, stop = random.Random(seed), threading.Event()
        victims = choices.sample(self.processes, choices.choices([1, 2, 3], [75, 10, 15])[0])
        with ThreadPoolExecutor(len(self.writers) + 1) as pool:
            running = [
                pool.submit(user.run, self.processes, seed, stop)
                for user in [*self.writers, self.searcher]
            ]
            time.sleep(choices.uniform(0.02, 0.3))
            self._kill(victims, choices)
            time.sleep(choices.uniform(0, 0.1))
            stop.set()
            for user in running:
                user.result()
        for victim in victims:
            victim.wait_ready()
        for writer in self.writers:
            writer.settle(choices.choice(self.processes), choices, self.processes)
        self.check()

    def _kill(self, victims: Sequence, choices: random.Random) -> None:
        for victim in victims:
            victim.end()
        if choices.random() < 0.15:  # it dies again while it starts
            victims[0].start()
            time.sleep(choices.uniform(0, 0.15))
            victims[0].end()
            self.kills += 1
        for victim in victims:
            victim.start()
        self.kills += len(victims)

    # -- checks; nothing is being written

    def check(self) -> None:
        """Compare the log and every view with the journals; count what is wrong."""
        wanted = self.living()
        first = self.processes[0]
        listed = [(c.id, c.attributes["version"]) for c in first.listed(COLLECTION)]
        self._compare("the listing", listed, wanted)
        assert [i for i, _ in listed] == sorted(wanted)
        self._check_sequence(first.describe(COLLECTION))
        for number, process in enumerate(self.processes):
            own = {i: row for i, row in wanted.items() if process.holds(i)}
            self._compare(f"process {number}", list(self._seen(process, own)), own)
            state = process.shard()
            assert (state.candidates, state.lag) == (len(own), 0)

    def _seen(self, process, own: dict[str, object]) -> Iterator[tuple[str, int]]:
        """Return id and version of all that a process finds; check modalities and scores."""
        query = np.eye(1, DIM, dtype=np.float32)
        for bucket in range(BUCKETS):
            for hits in process.search(
                COLLECTION,
                query,
                1000,
                condition=Compare("bucket", Operator.EQUAL, bucket),
                consistency=Consistency.STRONG,
                timeout=ANSWERED_S,
            ):
                for candidate_id, score, attributes in zip(
                    hits.ids, hits.scores, hits.attributes, strict=True
                ):
                    if (row := own.get(candidate_id)) is not None:
                        assert row.modality is hits.modality, candidate_id
                        assert abs(row.vector[0] - score) < TOLERANCE, candidate_id
                    yield candidate_id, attributes["version"]

    def _compare(
        self, where: str, seen: Sequence[tuple[str, int]], wanted: dict[str, object]
    ) -> None:
        versions = {(i, row.attributes["version"]) for i, row in wanted.items()}
        lost = versions - set(seen)
        doubled = [i for i, times in Counter(i for i, _ in seen).items() if times > 1]
        resurrected = {i for i, _ in seen if i not in wanted}
        self.lost += len(lost)
        self.doubled += len(doubled)
        self.resurrected += len(resurrected)
        problem = f"lost {sorted(lost)}, doubled {doubled}, resurrected {sorted(resurrected)}"
        assert not any([lost, doubled, resurrected]), f"{where}: {problem}"

    def _check_sequence(self, described) -> None:
        """The writes must fill 1..n without gap or overlap, and n must be the head."""
        spans = sorted(span for writer in self.writers for span in writer.journal.spans)
        ends = [0, *(last for _, last in spans)]
        gaps = [
            (end, first) for end, (first, _) in zip(ends, spans, strict=False) if first != end + 1
        ]
        self.doubled += len(gaps)
        assert not gaps, f"sequences with gaps or overlaps: {gaps[:5]}"
        assert int(described.token.rpartition(":")[2]) == ends[-1], "the head is another"
        counts = Counter(wire_modality(row.modality) for row in self.living().values())
        stored = {count.modality: count.count for count in described.candidates if count.count}
        assert stored == dict(counts)

    def defects(self) -> list[str]:
        """Return what the processes have in their logs of errors."""
        lines = [line for process in self.processes for line in process.log.open(errors="replace")]
        return [line.replace("\\n", "\n") for line in lines if '"ERROR"' in line]

    def summary(self, rounds: int) -> str:
        journals = [writer.journal for writer in self.writers]
        spans = [span for j in journals for span in j.spans]
        rows = sum(last - first + 1 for first, last in spans)
        return (
            f"{rounds} rounds: {len(spans)} writes of {rows} rows, {len(self.living())} living, "
            f"{sum(len(j.graves) for j in journals)} deleted for good, "
            f"{self.searcher.searches} searches, {self.kills} kills, "
            f"{sum(j.repeated for j in journals)} answers lost; "
            f"{self.lost} lost, {self.doubled} doubled, {self.resurrected} resurrected"
        )


def wire_modality(modality: Modality) -> int:
    return list(Modality).index(modality) + 1


@pytest.fixture(params=["sqlite", "postgres"])
def log_settings(request) -> Iterator[dict[str, str]]:
    """Settings for an empty log on each engine."""
    if request.param == "sqlite":
        yield {}
        return
    server = request.getfixturevalue("postgres")
    url = server.new_database()
    yield {"log_url": url}
    server.drop_database(url)


@pytest.fixture
def world(log_settings, index_processes, tmp_path, new_row) -> World:
    processes = [
        index_processes.start(tmp_path, shard_count=2, fork=True, **place, **log_settings)
        for place in PLACES
    ]
    for process in processes:
        process.wait_ready()
    processes[0].create(COLLECTION, DIM)
    writers = [Writer(number, new_row) for number in range(WRITERS)]
    return World(processes, writers, Searcher(writers, new_row))


@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_resurrected_by_kills(world, index_processes, eventually):
    begun = time.monotonic()
    for number in range(EFFORT.crash_rounds):
        try:
            world.play(f"{SEED} {number}")
        except BaseException:
            print(f"round {number} failed; replay with MMESH_CRASH_SEED={SEED}")
            print(world.summary(number), *world.defects(), sep="\n")
            raise
        if number % 10 == 9:
            print(f"{time.monotonic() - begun:.0f} s, {world.summary(number + 1)}", flush=True)
    for process in world.processes:
        assert process.is_running()
    index_processes.end_all()
    eventually(lambda: not index_processes.running(), "no builder or other process is left")


def test_writes_beside_a_search_hide_nothing_from_it(index_processes, tmp_path, new_row):
    """Rows move from deltas to segments and from one merge to the next under the searches."""
    process = index_processes.start(tmp_path, fork=True)
    process.wait_ready()
    process.create(COLLECTION, DIM)
    rows = {f"c{n}": new_row(n, DIM, version=0) for n in range(40)}
    queries = np.stack([row.vector for row in rows.values()])
    token = process.upsert(COLLECTION, rows)
    stop = threading.Event()

    def replace() -> int:
        for version in itertools.count(1):
            if stop.is_set():
                return version
            newer = {i: new_row(n, DIM, version=version) for n, i in enumerate(rows)}
            noise = {f"noise-{i}": row for i, row in newer.items()}
            process.upsert(COLLECTION, newer | noise)
            process.delete(COLLECTION, list(noise))

    def look() -> int:
        for number in itertools.count():
            if stop.is_set():
                return number
            limit = 2 + number % 3  # the candidate itself, and maybe its noise
            found = process.search(
                COLLECTION, queries, limit, modalities=[Modality.TEXT], token=token
            )
            missing = [i for i, hits in zip(rows, found, strict=True) if i not in hits.ids]
            assert not missing, f"{missing} always live but were not found"
            assert all(len(set(hits.ids)) == len(hits.ids) == limit for hits in found)

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(work) for work in (replace, look, look)]
        time.sleep(EFFORT.hammer_s)
        stop.set()
        print("{} replacements, {} and {} searches".format(*(task.result() for task in running)))
