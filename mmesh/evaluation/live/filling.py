"""A pool into a collection, chunk by chunk; each is remembered, so that a killed fill goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mmesh.aio import AsyncClient
from mmesh.candidates import Candidate
from mmesh.collections import Collection
from mmesh.evaluation.datasets.dataset import Dataset, PoolRow
from mmesh.evaluation.live.contents import candidates_of, has_content
from mmesh.evaluation.rejections import Rejections
from mmesh.evaluation.survey import Survey, hash_of
from mmesh.evaluation.watching import Watcher
from mmesh.evaluation.whole_files import written_whole
from mmesh.ingest import Progress

CHUNK, SAMPLE = 4096, 256
"""Rows between two notes of how far it came, and rows by which the rate is measured."""


@dataclass
class Filled:
    """How far a pool is in its collection."""

    rows: int = 0
    """Rows of the pool that are settled: stored or rejected."""
    stored: int = 0
    candidates: Counter[str] = field(default_factory=Counter)
    """Those stored by modality; an older journal does not say it."""
    rejections: Rejections = field(default_factory=Rejections)


class FillJournal:
    """Remembers on disk how far a pool is in.

    It belongs to the collection as it was created and to the pool's files as they are: when one of
    them changes, it starts at the beginning.
    """

    def __init__(self, collection: Collection, dataset: Dataset) -> None:
        created = collection.create_time.isoformat()
        key = json.dumps([collection.name, created, pool_digest(dataset)])
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        self._path = Path(state) / "mmesh" / "evaluations" / f"{name}.json"

    def read(self) -> Filled:
        """Return how far it came; nothing when that is not known."""
        try:
            values = json.loads(self._path.read_text())
            rejections = Rejections.from_json(values["rejections"])
            candidates = Counter(values.get("candidates", {}))
            return Filled(values["rows"], values["stored"], candidates, rejections)
        except (OSError, ValueError, KeyError, TypeError):
            return Filled()

    def write(self, filled: Filled) -> None:
        """Note how far it came."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "rows": filled.rows,
            "stored": filled.stored,
            "candidates": filled.candidates,
            "rejections": filled.rejections.as_json(),
        }
        with written_whole(self._path) as file:
            file.write(json.dumps(values))

    def forget(self) -> None:
        """Start at the beginning the next time."""
        self._path.unlink(missing_ok=True)


async def fill(
    client: AsyncClient,
    collection: Collection,
    dataset: Dataset,
    found: Survey,
    journal: FillJournal,
    watcher: Watcher,
    on_rate: Callable[[int, float], None],
) -> Filled:
    """Put in what is not in yet; return how much there is and what was rejected.

    After the first rows `on_rate` gets the rows that are in and the rate; it may raise.
    """
    filled = journal.read()
    rows = islice(dataset.pool(), filled.rows, None)
    seen: set[int] = seen_before(dataset, found, filled.rows)
    watcher.stage("ingesting", found.rows, filled.rows)
    length = SAMPLE
    while chunk := list(islice(rows, length)):
        began, refused = time.monotonic(), Rejections()

        def note(progress: Progress, base: int = filled.rows) -> None:
            watcher.advance(base + progress.stored + progress.rejected)

        sent: list[str] = []
        source = _noting(candidates_of(chunk, seen, found.twice, refused), sent)
        report = await client.ingest(collection.name, source, on_progress=note)
        for one in report.rejected:
            refused.add(one.id, one.error.reason, one.error.message)
        filled.candidates.update(sent)
        filled.candidates.subtract(sent[one.number] for one in report.rejected)
        filled.rows += len(chunk)
        filled.stored += report.stored
        filled.rejections.extend([refused])
        journal.write(filled)
        watcher.advance(filled.rows)
        if length == SAMPLE:
            on_rate(filled.rows, len(chunk) / (time.monotonic() - began))
        length = CHUNK
    return filled


def _noting(candidates: Iterator[Candidate], modalities: list[str]) -> Iterator[Candidate]:
    """Yield candidates and note what they are made of."""
    for one in candidates:
        modalities.append(one.content.modality.value)
        yield one


def seen_before(dataset: Dataset, found: Survey, rows: int) -> set[int]:
    """Return which of the ids that come more than once came in the first rows, with content."""
    if not found.twice or not rows:
        return set()
    first = (row for row in islice(dataset.pool(), rows) if isinstance(row, PoolRow))
    return {key for row in first if (key := hash_of(row.id)) in found.twice and has_content(row)}


def pool_digest(dataset: Dataset) -> str:
    """Return a short name of a pool: another one when one of its files changes."""
    stamps = [[path.name, *_stamp(path)] for path in dataset.pool_files]
    return hashlib.sha256(json.dumps([dataset.name, stamps]).encode()).hexdigest()[:8]


def _stamp(path: Path) -> tuple[int, int | str]:
    """Return what changes with a file, or with the names and sizes of the files in a folder."""
    if not path.is_dir():
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    files = sorted((one.name, one.stat().st_size) for one in os.scandir(path) if one.is_file())
    return len(files), hashlib.sha256(json.dumps(files).encode()).hexdigest()
