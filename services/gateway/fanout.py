"""A search of all shards at once: what answers in time counts, what does not is said."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmesh.content import Modality
from mmesh.errors import (
    DeadlineExceeded,
    MmeshError,
    ResourceExhausted,
    ShardUnavailable,
    StaleReplica,
    Unavailable,
)
from mmesh.serving.deadline import Deadline
from services.gateway.ports import Index, ShardAnswer, ShardOrder
from services.gateway.ranking import Scored, join_shards

_SHARD_TROUBLE = (Unavailable, DeadlineExceeded, ResourceExhausted)
"""Errors of one shard that the others make up for; all others are about the request."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The joined lists of each query by modality, and what is missing from them."""

    lists: Sequence[Mapping[Modality, list[Scored]]]
    token: str
    answered: int
    missing: Mapping[int, MmeshError]
    service_s: float


async def search_shards(index: Index, order: ShardOrder, deadline: Deadline) -> Gathered:
    """Search every shard; those that fail are left out and listed.

    Raises:
        ShardUnavailable: no shard answered.
        MmeshError: the request is wrong, whatever the shard.
    """
    calls = (index.search(shard, order, deadline) for shard in range(index.shard_count))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    answers: list[ShardAnswer] = []
    missing: dict[int, MmeshError] = {}
    for shard, outcome in enumerate(outcomes):
        if isinstance(outcome, ShardAnswer):
            answers.append(outcome)
        elif isinstance(outcome, _SHARD_TROUBLE):
            missing[shard] = outcome
        else:
            raise outcome
    if not answers:
        raise _worst(missing)
    return _gather(order, answers, missing)


def _worst(missing: Mapping[int, MmeshError]) -> MmeshError:
    first = next(iter(missing.values()))
    if isinstance(first, StaleReplica | ResourceExhausted | DeadlineExceeded):
        return first
    return ShardUnavailable(f"no shard answered: {first.message}")


def _gather(
    order: ShardOrder, answers: Sequence[ShardAnswer], missing: Mapping[int, MmeshError]
) -> Gathered:
    lists = [
        {
            modality: join_shards([answer.lists[query][m] for answer in answers], order.limit)
            for m, modality in enumerate(order.modalities)
        }
        for query in range(len(order.queries))
    ]
    newest = max((answer.token for answer in answers), key=seq_of)
    slowest = max(answer.service_s for answer in answers)
    return Gathered(lists, newest, len(answers), missing, slowest)


def seq_of(token: str) -> int:
    """Return the sequence that a token names; 0 for none."""
    return int(token.rpartition(":")[2] or 0)
