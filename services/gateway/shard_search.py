"""A search of one shard set: any replica of a shard will do, and another when that one fails."""

from __future__ import annotations

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
    ResourceExhausted,
    StaleReplica,
    Unavailable,
)
from mmesh.serving.deadline import Deadline
from services.gateway import metrics
from services.gateway.calls import answer_of, options_for
from services.gateway.ports import ShardAnswer, ShardOrder
from services.gateway.ranking import Scored
from services.gateway.replica import Replica
from services.gateway.topology import Topology

MOST_ATTEMPTS = 3
_OF_THE_REPLICA = (
    Unavailable, DeadlineExceeded, ResourceExhausted, Cancelled, InternalError, DataLoss,
)  # fmt: skip
"""Errors that another replica need not have; it may also have what a stale one lacks."""


class ReplicatedSearch:
    """One search, of the shard set that was in use when it was prepared."""

    __slots__ = ("_order", "_request", "_set", "_topology", "_turn")

    def __init__(self, topology: Topology, order: ShardOrder, turn: int) -> None:
        self._topology, self._set = topology, topology.current
        self._order, self._turn = order, turn
        self._request = _request_of(order)

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
        """Search by the replicas in order; each but the last gets its part of the time."""
        for left, replica in zip(range(len(replicas), 0, -1), replicas, strict=True):
            part = deadline if left == 1 else deadline.share(1 / left)
            given_s = part.remaining()
            try:
                return await self._call(replica, shard, part)
            except _OF_THE_REPLICA as error:
                replica.blame(error, given_s)
                log_is_away = isinstance(error, LogUnavailable)
                if left == 1 or log_is_away or deadline.remaining() <= 0:
                    raise
                metrics.replica_retries_total.inc()
        raise Unavailable(f"no replica of index shard {shard} is ready")

    async def _call(self, replica: Replica, shard: int, deadline: Deadline) -> ShardAnswer:
        call = replica.index.Search(self._request, **options_for(deadline))
        reply = await answer_of(call, f"index shard {shard}")
        modalities = self._order.modalities
        lists = [
            _scored(message, modality)
            for message, modality in zip(reply.lists, cycle(modalities), strict=False)
        ]
        width = len(modalities)
        by_query = [lists[start : start + width] for start in range(0, len(lists), width)]
        return ShardAnswer(by_query, reply.token, reply.search_seconds + reply.queue_seconds)


def _request_of(order: ShardOrder) -> index_pb2.SearchRequest:
    return index_pb2.SearchRequest(
        collection=order.collection,
        queries=wire.vectors_to_pb(order.queries),
        model_fingerprint=order.fingerprint,
        modalities=[wire.modality_to_pb(modality) for modality in order.modalities],
        limit=order.limit,
        filter=wire.filter_to_pb(order.filter) if order.filter else None,
        consistency=wire.consistency_to_pb(order.consistency),
        token=order.token,
    )


def _scored(message: index_pb2.HitList, modality: Modality) -> list[Scored]:
    scores = np.frombuffer(message.scores, "<f4").tolist()
    return [
        Scored(candidate_id, modality, score, wire.attributes_from_pb(attributes.values))
        for candidate_id, score, attributes in zip(
            message.ids, scores, message.attributes, strict=True
        )
    ]
