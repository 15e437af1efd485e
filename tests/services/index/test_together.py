"""Pictures of one call are stored and read at the same time, and come in their order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmesh.candidates import Candidate
from mmesh.content import Content
from mmesh.errors import LogUnavailable
from services.index.log.rows import parts_to_json
from services.index.new_rows import new_rows
from services.index.store.blobs import ContentBlobs
from services.index.store.objects import LocalObjects
from services.index.store.together import together
from tests.effort import patient

WIDE = 4


@pytest.fixture
def pool():
    with ThreadPoolExecutor(WIDE) as pool:
        yield pool


def test_what_waits_is_overlapped_and_keeps_its_order(pool):
    meeting = threading.Barrier(WIDE)

    def work(item: int) -> int:
        if item % 2:
            meeting.wait(patient(30))  # breaks unless all of them are here at once
        return -item

    items = range(2 * WIDE)
    assert together(pool, work, items, lambda item: item % 2 == 1) == [-n for n in items]


def test_what_does_not_wait_changes_no_thread(pool):
    mine = threading.get_ident()
    found = together(pool, lambda _: threading.get_ident(), range(3), lambda _: False)
    assert found == [mine] * 3


def test_the_first_failure_ends_it_and_nothing_more_is_begun(pool):
    done = []
    held = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            raise LogUnavailable("the store is away")
        held.wait(patient(30))
        done.append(item)

    with pytest.raises(LogUnavailable):
        together(pool, work, range(100), lambda _: True)
    held.set()
    pool.shutdown()
    assert len(done) <= WIDE


def test_rows_name_their_own_pictures(pool, tmp_path, pictures):
    blobs = ContentBlobs(LocalObjects(tmp_path))
    contents = [Content.of(f"text {n}") if n % 3 == 0 else Content.of(pictures.png(n), f"{n}")
                for n in range(30)]  # fmt: skip
    candidates = [Candidate(f"c{n}", content) for n, content in enumerate(contents)]
    rows = new_rows(candidates, np.eye(30, dtype=np.float32), blobs, pool)
    assert [row.id for row in rows] == [one.id for one in candidates]
    assert [row.parts for row in rows] == [parts_to_json(one, blobs) for one in contents]
