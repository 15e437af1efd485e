"""Hedged search of one shard set: any replica will do, another when one fails or is slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle

import numpy as np

from mmesh import wire
from mmesh.api.index.v1 import index_pb2
from mmesh.content import Modality
from mmesh.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    InternalError,
    LogUnavailable,
    MessageTooLarge,
    ResourceExhausted,
    StaleReplica,
    Unavailable,
)
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from mmesh.wire.vector_search import vector_search_to_pb
from services.gateway import metrics
from services.gateway.interfaces import MOST_HITS_HERE, Scored, ShardAnswer
from services.gateway.rpc import answer_of
from services.gateway.shards.hedging import HedgeDelay, Race
from services.gateway.shards.replica import Replica
from services.gateway.shards.topology import ShardSet, Topology

MOST_ATTEMPTS = 3
_OF_THE_REPLICA = (
    Unavailable,
    DeadlineExceeded,
    ResourceExhausted,
    Cancelled,
    InternalError,
    DataLoss,
)
"""Errors that another replica need not have; it may also have what a stale one lacks."""


class ReplicatedSearch:
    """One search, of the shard set that was in use when it was prepared."""

    __slots__ = ("_delay", "_order", "_request", "_set", "_topology", "_turn")

    def __init__(
        self,
        topology: Topology,
        shards: ShardSet,
        order: VectorSearch,
        turn: int,
        delay: HedgeDelay,
    ) -> None:
        self._topology, self._set = topology, shards
        self._order, self._turn, self._delay = order, turn, delay
        self._request = vector_search_to_pb(order)

    @property
    def shard_count(self) -> int:
        """Shards of the set."""
        return self._set.shard_count

    async def search(self, shard: int, deadline: Deadline) -> ShardAnswer:
        """Search one shard by one of its replicas.

        Raises:
            MmeshError: none could; the error is that of the last.
        """
        usable = self._set.usable[shard]
        try:
            return await self._try(self._in_turn(usable), shard, deadline)
        except (StaleReplica, LogUnavailable):
            raise
        except Unavailable:
            # All that were known are gone. One may be back that nobody has noticed yet.
            found = await self._topology.revive(shard, self.shard_count, deadline)
            if not found or deadline.remaining() <= 0:
                raise
            return await self._try(found, shard, deadline)

    def _in_turn(self, replicas: Sequence[Replica]) -> Sequence[Replica]:
        if len(replicas) < 2:
            return replicas
        first = self._turn % len(replicas)
        return (*replicas[first:], *replicas[:first])[:MOST_ATTEMPTS]

    async def _try(
        self, replicas: Sequence[Replica], shard: int, deadline: Deadline
    ) -> ShardAnswer:
        """Return the first answer of the replicas, which are asked one after another.

        The next is asked when one failed, is slow, or has had its part of the time.
        """
        if not replicas:
            raise Unavailable(f"no replica of index shard {shard} is ready")
        begun, part_s = time.monotonic(), deadline.remaining() / len(replicas)
        async with Race[ShardAnswer]() as race:
            for number, replica in enumerate(replicas[:-1], start=1):
                race.enter(self._ask(replica, shard, deadline))
                if answer := await self._wait(race, begun + number * part_s):
                    return answer
            race.enter(self._ask(replicas[-1], shard, deadline))
            return await race.last()

    async def _wait(self, race: Race[ShardAnswer], until: float) -> ShardAnswer | None:
        """Return an answer, or None when another replica is to be asked.

        Raises:
            MmeshError: another replica would not answer otherwise.
        """
        try:
            patience_s = self._delay.patience_s
            if patience_s < _left(until):
                if answer := await race.first(patience_s):
                    return answer
                if self._delay.spend():
                    metrics.hedges_total.inc()
                    return None
            if answer := await race.first(_left(until)):
                return answer
        except _OF_THE_REPLICA as error:
            if isinstance(error, LogUnavailable | MessageTooLarge):  # as another's would be
                raise
        metrics.replica_retries_total.inc()
        return None

    async def _ask(self, replica: Replica, shard: int, deadline: Deadline) -> ShardAnswer:
        begun, given_s = time.monotonic(), deadline.remaining()
        try:
            call = replica.search(self._request, deadline)
            answer = await self._read(*await answer_of(call, f"index shard {shard}"))
        except asyncio.CancelledError:  # another was faster, or nobody waits any more
            replica.blame(DeadlineExceeded("it is slow"), time.monotonic() - begun)
            raise
        except _OF_THE_REPLICA as error:
            if not isinstance(error, MessageTooLarge):
                replica.blame(error, given_s)
            raise
        self._delay.note(time.monotonic() - begun)
        return answer

    async def _read(
        self, response: index_pb2.SearchResponse, hits: Sequence[index_pb2.HitList]
    ) -> ShardAnswer:
        """Read a reply; one of many hits in a thread, beside other work of the event loop."""
        if sum(map(_effort, hits)) <= MOST_HITS_HERE:
            return self._answer_of(response, hits)
        return await asyncio.to_thread(self._answer_of, response, hits)

    def _answer_of(
        self, response: index_pb2.SearchResponse, hits: Sequence[index_pb2.HitList]
    ) -> ShardAnswer:
        modalities = self._order.modalities
        lists = [
            _scored(message, modality)
            for message, modality in zip(hits, cycle(modalities), strict=False)
        ]
        width = len(modalities)
        by_query = [lists[start : start + width] for start in range(0, len(lists), width)]
        seconds = response.search_seconds + response.queue_seconds
        unknown = {one.name: one.nearest for one in response.unknown_attributes}
        return ShardAnswer(by_query, Token.parse(response.token), seconds, unknown)


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())


def _effort(hits: index_pb2.HitList) -> int:
    """Return about how many hits with few attributes take as long to read as these."""
    attributes = len(hits.attributes[0].values) if hits.attributes else 0
    return len(hits.ids) * (1 + attributes // 4)


def _scored(message: index_pb2.HitList, modality: Modality) -> list[Scored]:
    scores = np.frombuffer(message.scores, "<f4").tolist()
    attributes = [wire.attributes_from_pb(one.values) for one in message.attributes]
    return [
        Scored(candidate_id, modality, score, values)
        for candidate_id, score, values in zip(
            message.ids, scores, attributes or [{} for _ in scores], strict=True
        )
    ]
