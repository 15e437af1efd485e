"""Logs on both engines, and rows to write into them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from obstore.exceptions import GenericError

from mmesh.collections import CollectionLimits, CollectionSettings
from mmesh.content import Modality
from mmesh.errors import DataLoss, LogUnavailable, MmeshError, StorageFull
from mmesh.serving import supervision
from mmesh.serving.backoff import Pauses
from services.index.log.ledger import Delete, Upsert, Write, Written
from services.index.log.log import Log
from services.index.log.rows import CollectionRow, NewCandidate, Rows
from services.index.log.tables import metadata
from services.index.segments.delta import Delta
from services.index.segments.ids import hashes_of
from services.index.slots import SLOTS, slot_of
from services.index.upkeep.recall_probe import RecallProbe
from services.index.view.follower import Follower
from services.index.view.memory import MemoryBudget
from services.index.view.searcher import Searcher
from tests.effort import patient
from tests.services.index import probing
from tests.services.index.probing import IDS, Probed, Room

DIM = 2
ERRORS = [
    RuntimeError("FAISS"),
    MemoryError("no memory"),
    OSError(28, "No space left on device"),
    sa.exc.OperationalError("SELECT", {}, Exception("driver")),
    GenericError("object store"),
    StorageFull("full"),
    DataLoss("damaged"),
    LogUnavailable("away"),
    ExceptionGroup("several", [ValueError(), KeyError()]),
]
"""One of each kind that FAISS, numpy, the disk, the database and the object store raise."""


def new_row(
    candidate_id: str, modality: Modality = Modality.TEXT, number: float = 0.0, attributes: str = ""
) -> NewCandidate:
    vector = np.array([number, 1.0], "<f4").tobytes()
    parts = f'[{{"text": "{candidate_id}"}}]'
    return NewCandidate(candidate_id, slot_of(candidate_id), modality, attributes, parts, vector)


def same_types(types: Mapping[str, str]) -> object:
    return types


class Writer:
    """The calls of a log as tests make them: one write a time, errors raised."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def write(self, write: Write) -> Written:
        [outcome] = self.log.write([write])
        if isinstance(outcome, MmeshError):
            raise outcome
        return outcome

    def create(self, name: str = "c", most: int = 0) -> CollectionRow:
        settings = CollectionSettings(limits=CollectionLimits(max_candidates=most))
        return self.log.create_collection(name, DIM, "model", settings)

    def put(self, *ids: str, collection: str = "c", request_id: str = "") -> Written:
        rows = [new_row(candidate_id) for candidate_id in ids]
        return self.write(Upsert(collection, rows, same_types, request_id))

    def delete(self, *ids: str, collection: str = "c", request_id: str = "") -> Written:
        return self.write(Delete(collection, ids, request_id))

    def after(
        self, seq: int = 0, slots: range = range(SLOTS), limit: int = 1000, collection: str = "c"
    ) -> tuple[Rows, int]:
        epoch = self.log.collection(collection).epoch
        return self.log.read_after(collection, epoch, seq, slots, limit, DIM)

    def ids(self, collection: str = "c") -> list[str]:
        return [row.id for row in self.log.page(collection, "", 10_000).rows]


ENGINES = ["sqlite", "postgresql"]


def empty_log(url: str) -> None:
    """Take all rows out of a log in PostgreSQL, whoever still has a connection to it."""
    with psycopg.connect(url.replace("+psycopg", ""), options="-c lock_timeout=5s") as connection:
        connection.execute(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY")


@pytest.fixture(scope="session")
def used_urls() -> list[str]:
    """Databases of PostgreSQL that have the tables of a log and no rows."""
    return []


@pytest.fixture(params=ENGINES)
def log_url(request, tmp_path, used_urls) -> Iterator[str]:
    """Address of a log without rows, or of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'log.db'}"
        return
    server = request.getfixturevalue("postgres")
    url = used_urls.pop() if used_urls else server.new_database()
    yield url
    empty_log(url)
    used_urls.append(url)


@pytest.fixture(params=ENGINES)
def empty_url(request, tmp_path) -> Iterator[str]:
    """Address of an empty database, for tests that look at its tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'log.db'}"
        return
    server = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def open_log() -> Iterator[Callable[[str], Writer]]:
    """Open logs; all are closed at the end."""
    opened: list[Log] = []

    def open_one(url: str) -> Writer:
        opened.append(Log(url))
        return Writer(opened[-1])

    yield open_one
    for log in opened:
        log.close()


@pytest.fixture
def writer(open_log, log_url) -> Writer:
    """A log with the empty collection "c" of dim 2."""
    writer = open_log(log_url)
    writer.create()
    return writer


@pytest.fixture(scope="session")
def row() -> Callable[..., NewCandidate]:
    return new_row


@pytest.fixture(scope="session")
def upsert() -> Callable[..., Upsert]:
    """Make an upsert of rows whose attributes nobody looks at."""

    def make(rows: Sequence[NewCandidate], collection: str = "c", request_id: str = "") -> Upsert:
        return Upsert(collection, rows, same_types, request_id)

    return make


@pytest.fixture(params=ERRORS, ids=lambda error: type(error).__name__)
def error(request) -> Exception:
    """An error of each kind that upkeep meets."""
    return request.param


@pytest.fixture
def sqlite_writer(open_log, tmp_path) -> Writer:
    """A log in SQLite with the empty collection "c" of dim 2."""
    writer = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    writer.create()
    return writer


@pytest.fixture
def follow(sqlite_writer):
    """Open a follower of a log, by default of that in SQLite: `async with follow() as follower`."""

    @asynccontextmanager
    async def follow(log=sqlite_writer.log, limit=1 << 40, **options) -> AsyncIterator[Follower]:
        given = {"delta_rows": 64, "poll_s": 0.005, "pauses": Pauses(0.001, 0.001)} | options
        async with Follower(log, range(SLOTS), budget=MemoryBudget(limit), **given) as follower:
            yield follower

    return follow


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait for what other tasks of this process bring about."""

    async def until(holds: Callable[[], object]) -> None:
        async with asyncio.timeout(patient(10)):
            while not holds():  # noqa: ASYNC110  # nothing tells but looking
                await asyncio.sleep(0.002)

    return until


Copy = dict[sa.Table, list[dict[str, object]]]
"""The rows of a log, by table."""


class Copies:
    """Copies of a log, which are put back into it in one transaction."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)

    def take(self, tables: Sequence[sa.Table] | None = None) -> Copy:
        with self._engine.begin() as connection:
            return {
                table: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
                for table in tables or metadata.sorted_tables
            }

    def put_back(self, copy: Copy) -> None:
        with self._engine.begin() as connection:
            for table, rows in copy.items():
                connection.execute(table.delete())
                if rows:
                    connection.execute(table.insert(), rows)


@pytest.fixture
def copies(log_url) -> Copies:
    """Copies of the log at `log_url`."""
    return Copies(log_url)


@pytest.fixture(scope="session")
def flat(tmp_path_factory):
    """The folder of an exact segment."""
    folder = tmp_path_factory.mktemp("flat")
    delta = Delta(probing.DIM, probing.ROWS)
    attributes = [json.dumps({"even": n % 2 == 0}) for n in range(probing.ROWS)]
    delta.append_many(IDS, hashes_of(IDS), attributes, probing.VECTORS)
    delta.save(folder)
    return folder


@pytest.fixture
async def probed(until):
    """Searches that are all probed."""
    searcher = Searcher(threads=1, max_waiting=100, inline_s=0.001)
    room = Room(searcher)
    async with RecallProbe(1.0, room, lambda view: True, budget=probing.always_full()):
        yield Probed(searcher, until, room)
    await searcher.close()
    assert not supervision.unwell()
