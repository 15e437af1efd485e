"""Garbage collection of blobs: mark and sweep, with a grace period, beside writers and collectors.

A sweep looks at all copies of pictures and notes those that no row names, with the time when that
was first seen (`garbage/{2 digits}.json`). It removes what was noted a grace period ago and is
still not named.

Why nothing is lost that a row names, or comes to name: a writer stores a copy, or finds one of the
same hour (`blobs.PERIOD_S`), and commits the row that names it within `COMMIT_S`. So no copy is
named for the first time when it is older than both together. The grace period is longer: a copy of
that age which no row named when a sweep began is never named again, however slow the sweep is,
whoever sweeps beside it, and whatever becomes of its notes. And no object is stored again under a
key that was removed, since by then the hour is another one.

Copies of collections take longer, and name what their source named when they began, even if it was
deleted since. So no sweep is made beside one: whoever is asked for the names fails then.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mmesh.errors import DataLoss, FailedPrecondition
from services.index.store.blobs import PERIOD_S, ROOT, name_of
from services.index.store.objects import Entry, Objects

COMMIT_S = 1800
"""Seconds from beginning to store a copy to committing the row that names it, at most."""
CLOCKS_S = 1800
"""Seconds by which clocks of processes and of the store may differ."""
LEAST_GRACE_S = PERIOD_S + COMMIT_S + CLOCKS_S
FOLDER = "garbage"
_SHARDS = tuple(f"{number:02x}" for number in range(256))
_BEGUN, _OWNER = f"{FOLDER}/begun", f"{FOLDER}/owner"


@dataclass(frozen=True, slots=True)
class Tally:
    """Objects and their bytes."""

    objects: int = 0
    size: int = 0

    def plus(self, entry: Entry) -> Tally:
        """Return the tally with one more object."""
        return Tally(self.objects + 1, self.size + entry.size)

    def __add__(self, other: Tally) -> Tally:
        """Return the sum."""
        return Tally(self.objects + other.objects, self.size + other.size)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found, before it removed any."""

    named: Tally = Tally()
    waiting: Tally = Tally()
    """Not named, for less than the grace period so far."""
    removed: Tally = Tally()
    """Not named for longer: what is removed, or would be."""

    @property
    def left(self) -> Tally:
        """What is still there."""
        return self.named + self.waiting

    def __add__(self, other: Swept) -> Swept:
        """Return the sum."""
        return Swept(
            self.named + other.named, self.waiting + other.waiting, self.removed + other.removed
        )


class Names:
    """A set of names, eight bytes each: a name that is not in it may seem so, hardly ever."""

    def __init__(self, names: Iterable[str]) -> None:
        self._hashes = np.unique(np.fromiter(map(_hash, names), np.uint64))

    def __contains__(self, name: str) -> bool:
        """Return whether the set has the name."""
        at = int(np.searchsorted(self._hashes, np.uint64(_hash(name))))
        return at < len(self._hashes) and int(self._hashes[at]) == _hash(name)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class Garbage:
    """The blobs in a store that nothing names. Several processes may have one of the same store.

    All calls raise `Unavailable` when the store cannot be reached.
    """

    def __init__(
        self, objects: Objects, grace_s: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._objects, self.grace_s, self._clock = objects, grace_s, clock

    def take_turn(self, interval_s: float) -> bool:
        """Return whether nobody has begun a sweep for `interval_s`; then it is this one's turn."""
        begun = self._objects.modified(_BEGUN)
        if begun is not None and self._clock() - begun < interval_s:
            return False
        self._objects.put(_BEGUN, b"")
        return True

    def claim(self, owner: str, *, adopt: bool = False) -> None:
        """Make sure that the store is swept by one log only: by others it would be emptied.

        The first one that sweeps owns it, until another is told to `adopt` it.

        Raises:
            FailedPrecondition: it belongs to another log.
        """
        if self._objects.put_new(_OWNER, owner.encode()):
            return
        known = self._objects.get(_OWNER).decode(errors="replace")
        if known == owner:
            return
        if not adopt:
            raise FailedPrecondition(
                f"the pictures in this store are those of the log {known[:32]!r}, and not of this "
                f"one, {owner!r}, which would remove them all. `mmesh index gc --adopt` says that "
                "they are this one's from now on",
                {"owner": known[:32], "log": owner},
            )
        self._objects.put(_OWNER, owner.encode())

    def sweep(self, named: Callable[[], Iterable[str]], *, dry_run: bool = False) -> Swept:
        """Look at all copies, note those that are not named, and remove what was noted long ago.

        `named` is called once and returns the names in all rows: at least in those that are
        committed when it is called and stay as they are. What it raises, before it has returned
        all, ends the sweep, and nothing is removed.
        """
        now = self._clock()  # before the rows are read
        names = Names(named())
        swept = Swept()
        for shard in _SHARDS:
            swept += self._sweep_shard(shard, names, now, dry_run)
        return swept

    def _sweep_shard(self, shard: str, names: Names, now: float, dry_run: bool) -> Swept:
        swept, noted = Swept(), self._noted(shard)
        waiting: dict[str, float] = {}
        for entry in self._objects.list(f"{ROOT}/{shard}"):
            name = name_of(entry.key)
            if name is None:
                continue
            since = noted.get(name, now)
            if name in names:
                swept += Swept(named=Tally().plus(entry))
            elif max(since, entry.modified) > now - self.grace_s:
                waiting[name] = since
                swept += Swept(waiting=Tally().plus(entry))
            else:
                swept += Swept(removed=Tally().plus(entry))
                if not dry_run:
                    self._objects.delete(entry.key)
        if waiting != noted and not dry_run:
            self._note(shard, waiting)
        return swept

    def _noted(self, shard: str) -> Mapping[str, float]:
        """Return since when copies are known not to be named; of nothing if that is lost."""
        try:
            return {
                str(n): float(t) for n, t in json.loads(self._objects.get(_notes(shard))).items()
            }
        except (DataLoss, ValueError, AttributeError, TypeError):
            return {}

    def _note(self, shard: str, waiting: Mapping[str, float]) -> None:
        if waiting:
            self._objects.put(_notes(shard), json.dumps(waiting).encode())
        else:
            self._objects.delete(_notes(shard))


def _notes(shard: str) -> str:
    return f"{FOLDER}/{shard}.json"
