"""Service discovery: the index processes, the shard sets they make up, and the one in use.

A shard set is the processes that divide the slots by the same number of shards. Each whole set is a
view of the same log, so any of them answers rightly. A new one is put beside the old one to change
the number of shards, and is used as soon as it is whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from mmesh.mesh_status import ServiceRole, ServiceState, ServiceStatus
from mmesh.serving.deadline import Deadline
from mmesh.serving.supervision import Supervised
from services.gateway import metrics
from services.gateway.addresses import AddressBook
from services.gateway.shards.replica import Replica

logger = logging.getLogger(__name__)

ADDRESSES_S = 0.25
"""Seconds between looks for new addresses."""


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The processes of one number of shards, as they are at one moment."""

    usable: tuple[tuple[Replica, ...], ...]
    """Those that can be searched, by shard."""
    answering: int
    """Shards that have at least one."""

    @property
    def shard_count(self) -> int:
        """Shards of the set."""
        return len(self.usable)

    @property
    def is_complete(self) -> bool:
        """Whether every shard can be searched."""
        return 0 < len(self.usable) == self.answering


NO_SET = ShardSet((), 0)


class Topology:
    """Watches the index processes; `current` is the set to search."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._book = AddressBook(sources)
        self._replicas: dict[str, Replica] = {}
        self._ages: dict[int, int] = {}
        """When each set was first seen, by its number of shards: the newest has the highest."""
        self._next_age = count()
        self._retiring: set[asyncio.Task[None]] = set()
        self._finder = Supervised("index discovery", self._keep_finding)
        self._started = False
        self.current = NO_SET

    @property
    def replicas(self) -> list[Replica]:
        """All processes that are known, whether they answer or not."""
        return list(self._replicas.values())

    async def start(self) -> None:
        """Find the processes, ask each of them once, and keep doing so."""
        await self._find()
        asked = [replica.ask() for replica in self.replicas]
        if asked:
            await asyncio.wait(asked)
        self._started = True
        self._renew()
        self._finder.start()

    async def close(self) -> None:
        """End the watching and close all channels."""
        await self._finder.aclose()
        for task in self._retiring:
            task.cancel()
        if self._retiring:
            await asyncio.wait(self._retiring)
        await asyncio.gather(*(replica.close() for replica in self.replicas))

    async def _keep_finding(self) -> None:
        while True:
            await asyncio.sleep(ADDRESSES_S)
            await self._find()
            self._finder.progress()

    async def _find(self) -> None:
        addresses = await self._book.look()
        if addresses == list(self._replicas):
            return
        known = self._replicas
        self._replicas = {
            address: known.get(address) or Replica(address, self._renew) for address in addresses
        }
        for address, replica in self._replicas.items():
            if address not in known:
                replica.start()
        for address, replica in known.items():
            if address not in self._replicas:
                self._retire(replica)
        logger.info("index processes", extra={"addresses": addresses})
        self._renew()

    def _retire(self, replica: Replica) -> None:
        retiring = asyncio.create_task(replica.retire())
        self._retiring.add(retiring)
        retiring.add_done_callback(self._note_retired)

    def _note_retired(self, retiring: asyncio.Task[None]) -> None:
        self._retiring.discard(retiring)
        if not retiring.cancelled() and (defect := retiring.exception()) is not None:
            logger.error("index process not let go of", exc_info=defect)

    async def set_in_use(self, deadline: Deadline) -> ShardSet:
        """Return the set to search; as long as there is none, all processes are asked first."""
        if not self.current.shard_count:
            await self.ask_all(deadline)
        return self.current

    async def ask_all(self, deadline: Deadline) -> None:
        """Ask every process what it holds; those that have not said it by then are late."""
        asked = [replica.ask() for replica in self.replicas]
        if asked:
            await asyncio.wait(asked, timeout=deadline.remaining())

    async def revive(self, shard: int, shard_count: int, deadline: Deadline) -> Sequence[Replica]:
        """Ask the processes that might hold a shard again; return one that can be searched now."""
        place = (shard, shard_count)
        waiting = {r.ask() for r in self.replicas if not r.is_usable and r.place in (place, None)}
        while not (found := self._usable(place)) and waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=deadline.remaining(), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
        return found

    def _usable(self, place: tuple[int, int]) -> Sequence[Replica]:
        return [r for r in self.replicas if r.is_usable and r.place == place][:1]

    def status(self) -> list[ServiceStatus]:
        """Return the state of every process, and of the shards in use that no process holds."""
        numbers: Counter[tuple[int, int] | None] = Counter()
        found = []
        for replica in self.replicas:
            found.append(_status_of(replica, numbers[replica.place]))
            numbers[replica.place] += 1
        in_use = self.current.shard_count
        for shard in (shard for shard in range(in_use) if not numbers[shard, in_use]):
            detail = f"no process is known that holds shard {shard} of {in_use}"
            found.append(
                ServiceStatus(
                    ServiceRole.INDEX,
                    ServiceState.MISSING,
                    shard=shard,
                    shard_count=in_use,
                    detail=detail,
                )
            )
        return found

    def _renew(self) -> None:
        """Group the processes anew and choose the set to search."""
        if not self._started:  # the first answers count as one, in the order of the addresses
            return
        sets = group(self.replicas)
        self._ages = {n: self._ages[n] for n in sets if n in self._ages}
        for shard_count in sets:
            if shard_count not in self._ages:
                self._ages[shard_count] = next(self._next_age)
        before = self.current.shard_count
        self.current = choose(sets, self._ages, before)
        now = self.current.shard_count
        if now != before:
            logger.info("shard set in use", extra={"shard_count": now, "before": before})
        if now != before and before:
            metrics.shard_set_switches_total.inc()
        metrics.shard_sets.set(sum(one.is_complete for one in sets.values()))
        for shard, usable in enumerate(self.current.usable):
            metrics.replicas.labels(str(shard)).set(len(usable))
        for shard in range(now, before):
            metrics.replicas.remove(str(shard))


def group(replicas: Iterable[Replica]) -> dict[int, ShardSet]:
    """Return the shard sets that processes make up, by number of shards, in order of discovery."""
    members: dict[int, list[list[Replica]]] = {}
    for replica in replicas:
        facts = replica.facts
        if facts is None:
            continue
        shards = members.setdefault(facts.shard_count, [[] for _ in range(facts.shard_count)])
        if replica.is_usable:
            shards[facts.shard].append(replica)
    return {
        shard_count: ShardSet(tuple(map(tuple, shards)), sum(map(bool, shards)))
        for shard_count, shards in members.items()
    }


def choose(sets: Mapping[int, ShardSet], ages: Mapping[int, int], current: int) -> ShardSet:
    """Return the newest complete set; without any, the one that misses the smallest part.

    Args:
        sets: the sets by number of shards.
        ages: when they were first seen, by number of shards.
        current: number of shards of the set in use, which stays when none is better.
    """
    complete = [one for one in sets.values() if one.is_complete]
    if complete:
        return max(complete, key=lambda one: ages[one.shard_count])

    def worth(one: ShardSet) -> tuple[float, bool, int]:
        n = one.shard_count
        return one.answering / n, n == current, ages[n]

    return max(sets.values(), key=worth, default=NO_SET)


def _status_of(replica: Replica, number: int) -> ServiceStatus:
    """Return the state of a process, the `number`th that holds its shard."""
    facts, error = replica.facts, replica.error
    shard, shard_count = replica.place or (0, 0)
    if error is not None:
        state, detail = ServiceState.of(error), error.message
    else:
        assert facts is not None
        state = ServiceState.SERVING if facts.ready else ServiceState.LOADING
        detail = f"{facts.candidates} candidates, {facts.lag} writes behind, id {facts.replica}"
    number = number if shard_count else 0
    return ServiceStatus(
        ServiceRole.INDEX, state, replica.address, shard, shard_count, number, detail
    )
