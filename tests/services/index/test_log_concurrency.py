"""Many writers, many processes, and a reader that follows them, on both engines."""

import subprocess
import sys
import threading
from collections import Counter

import pytest

from mmesh.errors import CollectionExists
from services.index.log.ledger import Delete, Written
from tests.effort import EFFORT

PROCESS = """
import sys
from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from services.index.log.log import Log
from services.index.log.rows import NewCandidate
from services.index.log.ledger import Delete, Upsert, Written

url, name = sys.argv[1:]
sys.stdin.readline()
log = Log(url)
log.create_collection("c", 1, "model", CollectionSettings())
for number in range(15):
    rows = [
        NewCandidate(f"{who}-{number}-{i}", i, Modality.TEXT, "", "[]", bytes(4))
        for who in (name, "shared")
        for i in range(3)
    ]
    writes = [Upsert("c", rows, dict, f"{name}{number}"), Delete("c", [f"{name}-{number}-0"])]
    assert all(isinstance(outcome, Written) for outcome in log.write(writes))
log.close()
"""


@pytest.fixture
def processes(empty_url):
    """Processes that open the log at the same moment and write to it."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, empty_url, name],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in "abcd"[: EFFORT.processes]
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def run(*targets):
    """Run functions at once; raise what any of them raised."""
    failures = []

    def guarded(target):
        try:
            target()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_processes_may_open_an_empty_database_at_once_and_leave_no_gap(
    processes, empty_url, open_log
):
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        assert process.wait(60) == 0, process.stderr.read().decode()
    log = open_log(empty_url).log
    head = log.collection("c")
    rows, through = log.read_after("c", head.epoch, 0, range(256), 10_000, 1)
    # Each writer has 15 rounds of 6 rows and one deletion; 45 rows are shared by all writers.
    writers = len(processes)
    assert through == head.seq == writers * 15 * 7
    assert len(rows) == writers * 15 * 3 + 45
    assert len(set(rows.seqs.tolist())) == len(rows)
    assert sum(head.counts.values()) == writers * 15 * 2 + 45


def test_a_reader_that_follows_writers_misses_nothing(writer, row, upsert, open_log, log_url):
    """Its state is at all times that of a moment, and in the end that of the table."""
    stop, seen = threading.Event(), {}
    epoch = writer.log.collection("c").epoch
    tokens = []

    def write(name):
        def body():
            for number in range(30):
                rows = [row(f"{(number * 7 + i) % 20}", number=number) for i in range(3)]
                writes = [upsert(rows), Delete("c", [f"{(number * 3) % 20}"])]
                if name == "b":
                    writes.reverse()
                outcomes = writer.log.write(writes)
                tokens.extend(int(o.token.partition(":")[2]) for o in outcomes if o.count)

        return body

    def follow():
        reader, applied = open_log(log_url), 0
        while not (stop.is_set() and applied == reader.log.collection("c").seq):
            head = reader.log.collection("c").seq
            rows, through = reader.log.read_after("c", epoch, applied, range(256), 5, 2)
            seqs = rows.seqs.tolist()
            assert seqs == sorted(seqs)
            assert all(seq > applied for seq in seqs)
            assert through >= min(head, seqs[-1] if seqs else head)
            seen.update(zip(rows.ids, zip(seqs, rows.deleted.tolist(), strict=True), strict=True))
            applied = through

    def write_all():
        run(write("a"), write("b"), write("c"))
        stop.set()

    run(write_all, follow, follow_at_once(writer, stop, epoch))
    rows, through = writer.after()
    assert seen == dict(
        zip(rows.ids, zip(rows.seqs.tolist(), rows.deleted.tolist(), strict=True), strict=True)
    )
    assert len(set(tokens)) == len(tokens)
    assert max(tokens) == through


def follow_at_once(writer, stop, epoch):
    """Return a reader that reads all from the start, again and again: no state goes backwards."""

    def body():
        last = 0
        while not stop.is_set():
            rows, through = writer.log.read_after("c", epoch, 0, range(256), 1000, 2)
            assert through >= last
            assert not len(rows) or rows.seqs[-1] <= through
            last = through

    return body


def test_groups_of_several_collections_in_any_order_do_not_block_each_other(writer, row, upsert):
    names = ["c", *(writer.create(name).name for name in ("d", "e"))]

    def write(order):
        def body():
            for number in range(20):
                outcomes = writer.log.write([upsert([row(str(number))], name) for name in order])
                assert all(isinstance(outcome, Written) for outcome in outcomes)

        return body

    run(write(names), write(names[::-1]), write(["d", "e", "c"]))
    assert [writer.log.collection(name).seq for name in names] == [60, 60, 60]


def test_one_name_becomes_one_collection_or_one_alias(writer, open_log, log_url):
    outcomes = Counter()

    def create():
        outcomes[open_log(log_url).create("new").epoch] += 1

    run(*[create] * 4)
    assert list(outcomes.values()) == [4]

    def create_other():
        try:
            writer.create("other")
            outcomes["created"] += 1
        except CollectionExists:
            outcomes["refused"] += 1

    def set_alias():
        try:
            writer.log.set_alias("other", "c")
            outcomes["created"] += 1
        except CollectionExists:
            outcomes["refused"] += 1

    run(create_other, set_alias)
    assert (outcomes["created"], outcomes["refused"]) == (1, 1)


def test_writers_purges_and_new_collections_go_on_beside_each_other(writer, row, upsert):
    def write():
        for number in range(30):
            writer.log.write([upsert([row(str(number % 7))]), Delete("c", [str(number % 7)])])

    def purge():
        for _ in range(10):
            writer.log.purge(-1)

    def churn():
        for number in range(10):
            writer.create(f"churn-{number}")
            writer.put("a", "b", collection=f"churn-{number}")
            writer.log.delete_collection(f"churn-{number}")

    run(write, write, purge, purge, churn)
    writer.log.purge(-1)
    rows, through = writer.after()
    assert (len(rows), through) == (sum(writer.log.collection("c").counts.values()), through)
    assert [r.name for r in writer.log.collections()] == ["c"]
