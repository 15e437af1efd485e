"""Snapshots of a shard among other objects: immutable files by hash, and numbered manifests.

    snapshots/{epoch}/{first slot}-{last slot}/{number}.json    a manifest, written last
    snapshots/{epoch}/{first slot}-{last slot}/files/{sha256}   what manifests name

A snapshot exists once its manifest does. Manifests are created under the number after the newest,
never replaced, so of several replicas one wins each number. Damage is found before use: a snapshot
of which a byte is wrong is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import faiss

from mmesh.content import Modality
from mmesh.errors import DataLoss, StorageFull, Unavailable
from services.index import metrics
from services.index.point import Point
from services.index.store.manifest import (
    MAX_BYTES,
    Damage,
    FileEntry,
    Manifest,
    SegmentEntry,
    SnapshotDamaged,
    decode,
    encode,
    is_file_name,
)
from services.index.store.objects import Entry, Objects, storing

logger = logging.getLogger(__name__)

ROOT = "snapshots"
GRACE_S = 3600.0
"""Age below which no file is deleted: its snapshot may be about to be written."""
_MANIFEST = re.compile(r"(\d{8})\.json")
_MANIFEST_KEY = re.compile(rf"({ROOT}/[^/]+/\d{{3}}-\d{{3}})/\d{{8}}\.json")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_ALIVE = "alive"


@dataclass(frozen=True, slots=True)
class SnapshotSegment:
    """A segment in a snapshot, and which of its rows live."""

    modality: Modality
    folder: Path
    alive_bits: bytes


@dataclass(frozen=True, slots=True)
class SnapshotContent:
    """What a snapshot is made of; the folders stay as they are while it is stored."""

    collection: str
    epoch: str
    dim: int
    model_fingerprint: str
    slots: range
    seq: int
    """The sequence of the log that the segments and their living rows reflect."""
    segments: Sequence[SnapshotSegment]
    stamp: str = ""
    """Of the commit that made write `seq`."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A snapshot in folders of this machine, every byte of it checked."""

    seq: int
    number: int
    segments: tuple[SnapshotSegment, ...]
    stamp: str = ""

    @property
    def at(self) -> Point:
        """What it reflects: all writes of its history up to here."""
        return Point(self.seq, self.stamp)


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot as a listing shows it."""

    epoch: str
    slots: range
    number: int
    manifest: Manifest | None
    """None where it is damaged."""
    problem: str
    """What is wrong with the manifest; empty where nothing is."""


Identity = tuple[int, ...]
"""Of a file that does not change: device, inode, size and time of the last change."""


@dataclass(slots=True)
class _Known:
    """What this process knows of the files of one shard: no more than its newest snapshot names."""

    hashes: dict[Identity, str] = field(default_factory=dict)
    """SHA-256 of files on this machine."""
    sound: set[str] = field(default_factory=set)
    """Stored files that it stored or checked, by hash."""

    def keep(self, named: set[str]) -> None:
        """Forget all files but these; segments that were merged away do not come back."""
        hashes = list(self.hashes.items())  # another call may add to them
        self.hashes = {identity: digest for identity, digest in hashes if digest in named}
        self.sound &= named


class Snapshots:
    """The snapshots in a store. May be used from several threads, and by several processes.

    All calls raise `Unavailable` when the store cannot be reached.
    """

    def __init__(self, objects: Objects, keep: int = 3, *, grace_s: float = GRACE_S) -> None:
        self._objects = objects
        self._keep = keep
        self._grace_s = grace_s
        self._known: dict[str, _Known] = {}
        """By the folder of a shard in the store."""

    # -- storing

    def save(self, content: SnapshotContent) -> int | None:
        """Store a snapshot and return its number, or None when another replica was first.

        Files that this process stored or checked before are not uploaded again.

        Raises:
            StorageFull: there is no room. The snapshots before are as they were.
        """
        place = _place(content.epoch, content.slots)
        numbers = self._numbers(place)
        number = numbers[0] + 1 if numbers else 1
        known = self._known_of(place)
        segments = [(segment, _describe(segment, known)) for segment in content.segments]
        known.keep({file.sha256 for _, entry in segments for file in (entry.alive, *entry.files)})
        stored = self._stored_files(place, numbers)
        for segment, entry in segments:
            for file in entry.files:
                self._store(place, file, segment.folder / file.name, stored, known)
            self._store(place, entry.alive, segment.alive_bits, stored, known)
        data = encode(_manifest(content, number, [entry for _, entry in segments]))
        key = f"{place}/{number:08d}.json"
        if self._objects.put_new(key, data) or self._is_ours(key, data):
            return number
        return None

    def _is_ours(self, key: str, data: bytes) -> bool:
        """Return whether a first try, whose answer was lost, had stored the manifest."""
        try:
            return self._objects.get(key) == data
        except DataLoss:
            return False

    def _known_of(self, place: str) -> _Known:
        return self._known.setdefault(place, _Known())

    def _stored_files(self, place: str, numbers: Sequence[int]) -> dict[str, int]:
        """Return the sizes, by hash, of stored files that no other replica deletes soon.

        A file that a kept manifest names stays at least until another snapshot is stored, in which
        case this one comes too late. Any other may go once it is as old as `grace_s`.
        """
        kept = self._named(self._kept(self._read(place, numbers)))
        since = time.time() - self._grace_s / 2
        return {
            digest: entry.size
            for digest, entry in self._files(place).items()
            if digest in kept or entry.modified > since
        }

    def _store(
        self,
        place: str,
        file: FileEntry,
        data: bytes | Path,
        stored: dict[str, int],
        known: _Known,
    ) -> None:
        if file.sha256 in known.sound and stored.get(file.sha256) == file.size:
            return
        self._objects.put(f"{place}/files/{file.sha256}", data)
        stored[file.sha256] = file.size
        known.sound.add(file.sha256)

    # -- loading

    def load_newest(
        self,
        epoch: str,
        slots: range,
        into: Path,
        *,
        dim: int,
        at_least_seq: int = 0,
        is_wanted: Callable[[Manifest], bool] = lambda _: True,
    ) -> Loaded | None:
        """Load the newest sound snapshot into a new folder, or return None where there is none.

        Damaged snapshots are passed over, with a line in the log; so are those that reflect less
        than `at_least_seq`, the sequence up to which the log has forgotten deletions, and those
        that are not wanted.

        Raises:
            StorageFull: this machine has no room for it.
        """
        if into.exists() and any(into.iterdir()):
            raise ValueError(f"{into.name} is not empty")
        place, tried = _place(epoch, slots), set[int]()
        while untried := [n for n in self._numbers(place) if n not in tried]:
            number = untried[0]  # looked up anew each time, since others store and delete
            tried.add(number)
            try:
                manifest = self._manifest(place, number)
                _check_fit(manifest, dim)
                if manifest.seq >= at_least_seq and is_wanted(manifest):
                    return self._load(place, manifest, into)
            except SnapshotDamaged as damage:
                _report(place, number, damage.reason, damage.file)
            except Unavailable as error:
                _report(place, number, "unreadable", error.message)
        return None

    def _load(self, place: str, manifest: Manifest, into: Path) -> Loaded:
        self._check_stored(place, manifest)
        with storing(into):
            into.parent.mkdir(parents=True, exist_ok=True)
            _check_room(manifest, into.parent)
            folder = Path(tempfile.mkdtemp(prefix=f".{into.name}-", dir=into.parent))
            try:
                segments = [
                    self._load_segment(place, entry, folder / f"{n:03d}")
                    for n, entry in enumerate(manifest.segments)
                ]
                os.rename(folder, into)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        moved = tuple(
            SnapshotSegment(modality, into / name, alive) for modality, name, alive in segments
        )
        return Loaded(manifest.seq, manifest.number, moved, manifest.stamp)

    def _check_stored(self, place: str, manifest: Manifest) -> None:
        """Raise unless all files are there in the right size, before any is fetched."""
        stored = self._files(place)
        for file in manifest.files():
            if file.sha256 not in stored:
                raise SnapshotDamaged("missing", file.sha256)
            if stored[file.sha256].size != file.size:
                raise SnapshotDamaged("size", file.sha256)

    def _load_segment(
        self, place: str, segment: SegmentEntry, folder: Path
    ) -> tuple[Modality, str, bytes]:
        folder.mkdir()
        for file in segment.files:
            path = folder / file.name
            with _damage(file.sha256):
                self._objects.download(f"{place}/files/{file.sha256}", path, file.size)
            if path.stat().st_size != file.size or _sha256(path) != file.sha256:
                raise SnapshotDamaged("checksum", file.sha256)
            known = self._known_of(place)
            known.hashes[_identity(path)] = file.sha256
            known.sound.add(file.sha256)
        return segment.modality, folder.name, self._load_alive(place, segment.alive)

    def _load_alive(self, place: str, file: FileEntry) -> bytes:
        with _damage(file.sha256):
            data = self._objects.get(f"{place}/files/{file.sha256}")
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise SnapshotDamaged("checksum", file.sha256)
        self._known_of(place).sound.add(file.sha256)
        return data

    # -- what is there

    def list(self, epoch: str = "") -> Iterator[SnapshotInfo]:
        """Yield all snapshots, or those of one collection, the newest of each shard first."""
        entries = self._objects.list(f"{ROOT}/{epoch}" if epoch else ROOT)
        for place in sorted({_place_of(entry.key) for entry in entries} - {""}):
            _, name, slots = place.split("/")
            first, last = map(int, slots.split("-"))
            for number, found in self._read(place, self._numbers(place)).items():
                sound = isinstance(found, Manifest)
                yield SnapshotInfo(
                    epoch=name,
                    slots=range(first, last + 1),
                    number=number,
                    manifest=found if isinstance(found, Manifest) else None,
                    problem="" if sound else str(found),
                )

    def _numbers(self, place: str) -> Sequence[int]:
        """Return the numbers of all manifests, the newest first."""
        names = [entry.key.removeprefix(f"{place}/") for entry in self._objects.list(place)]
        found = [int(match[1]) for name in names if (match := _MANIFEST.fullmatch(name))]
        return sorted(found, reverse=True)

    def _files(self, place: str) -> dict[str, Entry]:
        """Return what is stored of files, by hash."""
        return {e.key.rsplit("/", 1)[1]: e for e in self._objects.list(f"{place}/files")}

    def _read(self, place: str, numbers: Sequence[int]) -> dict[int, Manifest | SnapshotDamaged]:
        """Return each manifest, or what is wrong with it."""
        found: dict[int, Manifest | SnapshotDamaged] = {}
        for number in numbers:
            try:
                found[number] = self._manifest(place, number)
            except SnapshotDamaged as damage:
                found[number] = damage
        return found

    def _manifest(self, place: str, number: int) -> Manifest:
        """Return a manifest that belongs where it is found."""
        key = f"{place}/{number:08d}.json"
        size = self._objects.size(key)
        if size is None or size > MAX_BYTES:
            raise SnapshotDamaged("missing" if size is None else "size", key)
        with _damage(key):
            data = self._objects.get(key)
        manifest = decode(data)
        if manifest.number != number or _place(manifest.epoch, manifest.slots) != place:
            raise SnapshotDamaged("mismatch", key)
        return manifest

    def _kept(self, found: Mapping[int, Manifest | SnapshotDamaged]) -> Sequence[Manifest]:
        """Return the newest sound manifests, as many as are kept."""
        return [m for m in found.values() if isinstance(m, Manifest)][: self._keep]

    @staticmethod
    def _named(manifests: Sequence[Manifest]) -> set[str]:
        return {file.sha256 for manifest in manifests for file in manifest.files()}

    # -- deleting

    def epochs(self, grace_s: float) -> set[str]:
        """Return the epochs that have snapshots, of which none was stored within `grace_s`."""
        until = time.time() - grace_s
        newest: dict[str, float] = {}
        for entry in self._objects.list(ROOT):
            epoch = entry.key.split("/")[1]
            newest[epoch] = max(entry.modified, newest.get(epoch, 0.0))
        return {epoch for epoch, modified in newest.items() if modified < until}

    def prune(self, epoch: str, slots: range) -> int:
        """Delete all but the newest snapshots of a shard; return how many objects that were.

        Nothing is deleted where a newer mmesh wrote: what its manifests name is not known.
        """
        place = _place(epoch, slots)
        files = self._files(place)  # before the manifests, so that all of these may be named
        found = self._read(place, self._numbers(place))
        if any(isinstance(m, SnapshotDamaged) and m.reason == "format" for m in found.values()):
            return 0
        kept = self._kept(found)
        oldest = kept[-1].number if len(kept) == self._keep else 0
        old = [f"{place}/{number:08d}.json" for number in found if number < oldest]
        named, until = self._named(kept), time.time() - self._grace_s
        old += [e.key for sha, e in files.items() if sha not in named and e.modified < until]
        for key in old:
            self._objects.delete(key)
        return len(old)

    def drop(self, epoch: str) -> int:
        """Delete the snapshots of a collection that is gone; return how many objects that were."""
        return self._drop(f"{ROOT}/{epoch}")

    def drop_retired(self, grace_s: float) -> int:
        """Delete the snapshots of shards that nobody holds any more, since their number changed.

        These stored none while others, which hold some of the same slots, did `grace_s` later. A
        shard that is held stores one whenever those do, since both follow the same writes.
        """
        newest: dict[str, float] = {}
        for entry in self._objects.list(ROOT):
            if place := _place_of(entry.key):
                newest[place] = max(entry.modified, newest.get(place, 0.0))
        return sum(
            self._drop(place)
            for place, modified in newest.items()
            if any(
                other != place and later - modified > grace_s and _share_slots(place, other)
                for other, later in newest.items()
            )
        )

    def _drop(self, folder: str) -> int:
        entries = self._objects.list(folder)
        for entry in sorted(entries, key=lambda entry: not entry.key.endswith(".json")):
            self._objects.delete(entry.key)  # manifests first, so that none names what is gone
        for place in list(self._known):  # other threads store and load other shards
            if place == folder or place.startswith(f"{folder}/"):
                self._known.pop(place, None)
        return len(entries)


def _describe(segment: SnapshotSegment, known: _Known) -> SegmentEntry:
    files = []
    for path in sorted(segment.folder.iterdir()):
        if not path.is_file() or not is_file_name(path.name):
            raise ValueError(f"{path.name} cannot be in the folder of a segment")
        files.append(FileEntry(path.name, _hash_of(path, known), path.stat().st_size))
    digest = hashlib.sha256(segment.alive_bits).hexdigest()
    alive = FileEntry(_ALIVE, digest, len(segment.alive_bits))
    return SegmentEntry(segment.modality, alive, tuple(files))


def _hash_of(path: Path, known: _Known) -> str:
    """Return the SHA-256 of a file that does not change; links to a file are one file."""
    identity = _identity(path)
    if identity not in known.hashes:
        known.hashes[identity] = _sha256(path)
    return known.hashes[identity]


def _place(epoch: str, slots: range) -> str:
    return f"{ROOT}/{epoch}/{slots[0]:03d}-{slots[-1]:03d}"


def _share_slots(one: str, other: str) -> bool:
    """Tell whether two places are of one collection and have slots in common."""
    (epoch, slots), (other_epoch, others) = (place.split("/")[1:] for place in (one, other))
    (first, last), (start, end) = (map(int, held.split("-")) for held in (slots, others))
    return epoch == other_epoch and first <= end and start <= last


def _place_of(key: str) -> str:
    """Return the folder of the manifest that the key names, or nothing where it names none."""
    match = _MANIFEST_KEY.fullmatch(key)
    return match[1] if match else ""


def _manifest(content: SnapshotContent, number: int, segments: Sequence[SegmentEntry]) -> Manifest:
    return Manifest(
        number=number,
        collection=content.collection,
        epoch=content.epoch,
        slots=content.slots,
        dim=content.dim,
        model_fingerprint=content.model_fingerprint,
        seq=content.seq,
        faiss=faiss.__version__,
        create_time=datetime.now(UTC),
        writer=secrets.token_hex(8),
        segments=tuple(segments),
        stamp=content.stamp,
    )


def _check_fit(manifest: Manifest, dim: int) -> None:
    if manifest.dim != dim:
        raise SnapshotDamaged("mismatch", "manifest")
    if not _can_read(manifest.faiss, faiss.__version__):
        raise SnapshotDamaged("faiss", "manifest")


def _can_read(written: str, running: str) -> bool:
    """Return whether this FAISS is as new as the one that wrote, by major and minor number."""
    versions = [_VERSION.match(version) for version in (written, running)]
    old, new = [match and (int(match[1]), int(match[2])) for match in versions]
    return old is not None and new is not None and old <= new


def _check_room(manifest: Manifest, folder: Path) -> None:
    if manifest.size > shutil.disk_usage(folder).free:
        raise StorageFull(f"the disk has no room for a snapshot of {manifest.size} bytes")


def _identity(path: Path) -> Identity:
    """Tell a file by what stays when it is linked, and differs when it is written."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _damage(file: str) -> Iterator[None]:
    """Turn a store's loss of an object into damage of a snapshot."""
    try:
        yield
    except DataLoss as loss:
        reason: Damage = "size" if "expected_size" in loss.metadata else "missing"
        raise SnapshotDamaged(reason, file) from None


def _report(place: str, number: int, reason: str, file: str) -> None:
    metrics.snapshot_failures_total.labels(reason).inc()
    extra = {"place": place, "number": number, "file": file, "reason": reason}
    logger.warning("snapshot damaged", extra=extra)
