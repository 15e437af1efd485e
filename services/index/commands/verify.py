"""Verification: `python -m services.index.commands.verify` holds snapshots against the log.

Restores each snapshot into a scratch folder, opens its segments, and holds every candidate against
the log. What was written after a snapshot may differ: whoever restores it reads that from the log.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmesh.errors import CollectionNotFound, DataLoss, MmeshError
from services.index.config import IndexSettings
from services.index.log.log import Log
from services.index.log.rows import CollectionRow, Rows
from services.index.point import Point
from services.index.segments.ids import hashes_of
from services.index.segments.segment import Segment
from services.index.store.objects import open_objects
from services.index.store.snapshot import Loaded, Snapshots, SnapshotSegment

PAGE_ROWS = 5000
EXACT, ROUNDED = 1e-6, 2e-3
"""How much a number of a unit vector may differ: kept as float32, or in 16 bits."""
Mask = NDArray[np.bool_]


class ReadableLog(Protocol):
    """What a comparison needs of `Log`."""

    def collection(self, name: str) -> CollectionRow:
        """See `Log`."""

    def collections(self, after: str = "", limit: int | None = None) -> Sequence[CollectionRow]:
        """See `Log`."""

    def holds(self, row: CollectionRow, point: Point) -> bool | None:
        """See `Log`."""

    def read_after(
        self, name: str, epoch: str, seq: int, slots: range, limit: int, dim: int
    ) -> tuple[Rows, int]:
        """See `Log`."""


@dataclass(slots=True)
class Counts:
    """Candidates of a snapshot, by what the log says of them."""

    candidates: int = 0
    """In the snapshot."""
    missing: int = 0
    """In the log since before the snapshot, and not in it."""
    differing: int = 0
    """In both with another vector, other attributes or modality, or twice in the snapshot."""
    extra: int = 0
    """In the snapshot, but deleted before it, or never written."""
    stale: int = 0
    """Written anew or deleted since; the log brings them up to date."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of the newest snapshot of a shard."""

    collection: str
    epoch: str
    first_slot: int
    last_slot: int
    number: int
    """0 where none could be restored."""
    seq: int
    counts: Counts
    passed_over: int
    """Newer snapshots that are damaged."""
    problem: str
    """What is wrong; empty where nothing is."""
    expired: bool
    """Whether the log has forgotten deletions since, so that nobody restores it."""
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether it was compared, and equals the log."""
        return not self.problem and not self.expired


def verify(
    log: ReadableLog, snapshots: Snapshots, scratch: Path, *, collection: str = ""
) -> list[Verified]:
    """Verify the newest snapshot of each shard of all collections, or of one.

    Raises:
        CollectionNotFound: there is no such collection.
    """
    rows = [log.collection(collection)] if collection else log.collections()
    return [
        verify_shard(log, snapshots, row, slots, scratch)
        for row in rows
        for slots in dict.fromkeys(info.slots for info in snapshots.list(row.epoch))
    ]


def verify_shard(
    log: ReadableLog, snapshots: Snapshots, row: CollectionRow, slots: range, scratch: Path
) -> Verified:
    """Restore the newest snapshot of a shard and compare it with the log."""
    start = time.perf_counter()
    newest = max(info.number for info in snapshots.list(row.epoch) if info.slots == slots)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        loaded = snapshots.load_newest(row.epoch, slots, Path(folder) / "snapshot", dim=row.dim)
        counts, problem = Counts(), "no snapshot is sound"
        expired = loaded is not None and loaded.seq < row.purged
        if loaded is not None and not expired:
            counts, problem = _outcome(log, row, slots, loaded)
    return Verified(
        collection=row.name,
        epoch=row.epoch,
        first_slot=slots[0],
        last_slot=slots[-1],
        number=loaded.number if loaded else 0,
        seq=loaded.seq if loaded else 0,
        counts=counts,
        passed_over=max(0, newest - loaded.number) if loaded else 0,
        problem="" if expired else problem,
        expired=expired,
        seconds=time.perf_counter() - start,
    )


def _outcome(
    log: ReadableLog, row: CollectionRow, slots: range, loaded: Loaded
) -> tuple[Counts, str]:
    """Return what a comparison counted, and what is wrong in one line."""
    try:
        counts = compare(log, row, slots, loaded)
        head = log.collection(row.name).seq
    except (DataLoss, CollectionNotFound) as error:  # sound by its checksums, or just deleted
        return Counts(), error.message
    if loaded.seq > head:
        return counts, f"reflects {loaded.seq} writes where the log has {head}"
    if loaded.stamp and log.holds(row, loaded.at) is False:
        return counts, "of a history that the log has lost; restores pass it over"
    wrong = {name: getattr(counts, name) for name in ("missing", "differing", "extra")}
    return counts, ", ".join(f"{count} {name}" for name, count in wrong.items() if count)


def compare(log: ReadableLog, row: CollectionRow, slots: range, loaded: Loaded) -> Counts:
    """Hold a restored snapshot against all rows of the log.

    Raises:
        DataLoss: its segments cannot be opened.
    """
    shelves = [_Shelf(segment) for segment in loaded.segments]
    counts = Counts(candidates=sum(int(shelf.alive.sum()) for shelf in shelves))
    for rows in _pages(log, row, slots):
        _compare_page(rows, loaded.seq, shelves, counts)
    counts.extra += sum(int((shelf.alive & ~shelf.seen).sum()) for shelf in shelves)
    return counts


def _pages(log: ReadableLog, row: CollectionRow, slots: range) -> Iterator[Rows]:
    seq, more = 0, True
    while more:
        rows, seq = log.read_after(row.name, row.epoch, seq, slots, PAGE_ROWS, row.dim)
        yield rows
        more = len(rows) >= PAGE_ROWS


class _Shelf:
    """A segment of a snapshot, and which of its rows the log has named."""

    def __init__(self, stored: SnapshotSegment) -> None:
        self.segment = Segment.open(stored.folder)
        self.segment.set_alive(stored.alive_bits)
        self.modality = stored.modality
        bits = np.frombuffer(self.segment.alive_bits(), np.uint8)
        self.alive: Mask = np.unpackbits(bits, bitorder="little")[: len(self.segment)] > 0
        self.seen = np.zeros_like(self.alive)
        self.tolerance = EXACT if self.segment.index_factory == "Flat" else ROUNDED

    def differs(self, found: NDArray[np.int64], rows: Rows, which: NDArray[np.int64]) -> Mask:
        """Return whether rows `found` of the segment are others than rows `which` of the log."""
        ours, theirs = self.segment.vectors(found), rows.vectors[which]
        differs: Mask = ~(np.abs(ours - theirs).max(axis=1, initial=0.0) <= self.tolerance)
        attributes = self.segment.attributes(found)
        for n, (row, text) in enumerate(zip(which, attributes, strict=True)):
            differs[n] |= text != rows.attributes[row] or rows.modalities[row] != self.modality
        return differs


def _compare_page(rows: Rows, seq: int, shelves: Sequence[_Shelf], counts: Counts) -> None:
    later, hashes = rows.seqs > seq, hashes_of(rows.ids)
    expected = ~later & ~rows.deleted
    copies, differing = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    for shelf in shelves:
        found = shelf.segment.find(hashes, rows.ids)
        here = found >= 0
        here[here] = shelf.alive[found[here]]
        shelf.seen[found[here]] = True
        copies += here
        which = np.flatnonzero(here & expected)
        differing[which] |= shelf.differs(found[which], rows, which)
    counts.missing += int((expected & (copies == 0)).sum())
    counts.differing += int((expected & (differing | (copies > 1))).sum())
    counts.extra += int((~expected & ~later & (copies > 0)).sum())
    counts.stale += int((later & (copies > 0)).sum())


# -- the command


def failed(shards: Sequence[Verified]) -> bool:
    """Return whether a snapshot is wrong, or none was compared."""
    return any(shard.problem for shard in shards) or not any(shard.is_sound for shard in shards)


def to_json(shards: Sequence[Verified]) -> str:
    """Return the outcome for programs."""
    entries: list[dict[str, Any]] = []
    for shard in shards:
        entry = dataclasses.asdict(shard)
        entries.append(entry | entry.pop("counts") | {"is_sound": shard.is_sound})
    return json.dumps({"failed": failed(shards), "shards": entries}, indent=2)


COLUMNS = (
    "collection", "slots", "snapshot", "seq", "candidates", "missing", "differing", "extra",
    "stale", "seconds", "outcome",
)  # fmt: skip


def to_text(shards: Sequence[Verified]) -> str:
    """Return the outcome for people, as a table with a line for each shard."""
    lines = [COLUMNS, *map(_cells, shards)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cells(shard: Verified) -> tuple[str, ...]:
    counts = shard.counts
    numbers = (counts.candidates, counts.missing, counts.differing, counts.extra, counts.stale)
    return (
        shard.collection,
        f"{shard.first_slot}-{shard.last_slot}",
        str(shard.number) if shard.number else "none",
        str(shard.seq),
        *map(str, numbers),
        f"{shard.seconds:.1f}",
        _words(shard),
    )


def _words(shard: Verified) -> str:
    note = f"; {shard.passed_over} newer damaged" if shard.passed_over else ""
    if shard.expired:
        return "expired: the log has forgotten deletions since" + note
    return (shard.problem or "equal") + note


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify, print, and return the exit code: 1 when something is wrong or nothing was compared.

    Takes what it is not told from the variables of the index service.
    """
    options = _parser().parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if value}
    collection, as_json = given.pop("collection", ""), given.pop("json", False)
    settings = IndexSettings(**given)
    if settings.log_file is not None and not settings.log_file.exists():
        print(f"there is no log at {settings.log_file}", file=sys.stderr)
        return 1
    try:
        snapshots = Snapshots(open_objects(settings.blobs), keep=settings.snapshots_kept)
        with tempfile.TemporaryDirectory(dir=settings.scratch_dir) as scratch:
            log = Log(settings.url)
            try:
                shards = verify(log, snapshots, Path(scratch), collection=collection)
            finally:
                log.close()
    except (MmeshError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if as_json:
        print(to_json(shards))
    else:
        print(to_text(shards) if shards else "there are no snapshots")
    return int(failed(shards))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.index.commands.verify",
        description="Restore the newest snapshots and compare them with the log.",
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the log and the blobs")
    parser.add_argument("--log-url", help="address of the log, if it is elsewhere")
    parser.add_argument("--blobs-url", help="where the snapshots are, if that is elsewhere")
    parser.add_argument("--scratch-dir", type=Path, help="folder to restore into")
    parser.add_argument("--collection", help="only this one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
