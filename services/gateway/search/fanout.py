"""Scatter-gather, a search of all shards at once: what answers in time counts, the rest is said.

While a collection is deleted and made anew, two shards may for a moment answer from two histories;
the epochs of their tokens tell, and such lists are never merged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mmesh.content import Modality
from mmesh.errors import (
    DataLoss,
    DeadlineExceeded,
    InternalError,
    MessageTooLarge,
    MmeshError,
    ResourceExhausted,
    ShardUnavailable,
    StaleReplica,
)
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token, newest
from mmesh.vector_search import VectorSearch
from services.gateway.interfaces import (
    MOST_HITS_HERE,
    PASSING,
    Index,
    Scored,
    ShardAnswer,
    ShardSearch,
)
from services.gateway.search.ranking import join_shards

MORE_ATTEMPTS, PAUSE_S = 2, 0.05
"""Further searches when shards disagree, and the pause after each, in which they read the log."""
_OF_THE_SHARD = (*PASSING, DataLoss, InternalError)
"""Errors of one shard, for which the others make up."""
Answers = Mapping[int, ShardAnswer]
Missing = Mapping[int, MmeshError]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The joined lists of each query by modality, and what is missing from them."""

    lists: Sequence[Mapping[Modality, list[Scored]]]
    token: Token
    answered: int
    total: int
    """Shards of the set that was searched."""
    missing: Missing
    service_s: float
    unknown: Mapping[str, str]
    """Attributes in the filter that no shard knows, and which may have been meant."""


async def search_shards(index: Index, order: VectorSearch, deadline: Deadline) -> Gathered:
    """Search every shard of one set; those that fail are left out and listed.

    Raises:
        ShardUnavailable: no shard answered.
        MmeshError: the request is wrong, whatever the shard.
    """
    search = await index.prepare(order, deadline)
    answers, missing = await _ask_all(search, deadline)
    if len(_epochs(answers)) > 1:
        search, answers, missing = await _until_they_agree(index, order, deadline)
    if not answers:
        raise _worst(missing)
    join = partial(_gather, order, answers, missing, search.shard_count)
    lists = len(order.queries) * len(order.modalities) * len(answers)
    is_large = order.limit * lists > MOST_HITS_HERE
    return await asyncio.to_thread(join) if is_large else join()


async def _ask_all(search: ShardSearch, deadline: Deadline) -> tuple[Answers, Missing]:
    calls = (search.search(shard, deadline) for shard in range(search.shard_count))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    answers: dict[int, ShardAnswer] = {}
    missing: dict[int, MmeshError] = {}
    for shard, outcome in enumerate(outcomes):
        if isinstance(outcome, ShardAnswer):
            answers[shard] = outcome
        elif isinstance(outcome, _OF_THE_SHARD) and not isinstance(outcome, MessageTooLarge):
            missing[shard] = outcome
        else:
            raise outcome
    return answers, missing


async def _until_they_agree(
    index: Index, order: VectorSearch, deadline: Deadline
) -> tuple[ShardSearch, Answers, Missing]:
    """Search again by the name that the log gives the collection; keep the answers that are of it.

    Raises:
        MmeshError: the log cannot say which collection is meant.
    """
    for _ in range(MORE_ATTEMPTS):
        collection = await index.get_collection(order.collection, deadline)
        search = await index.prepare(replace(order, collection=collection.name), deadline)
        answers, missing = await _ask_all(search, deadline)
        if len(_epochs(answers)) <= 1:
            return search, answers, missing
        await asyncio.sleep(min(PAUSE_S, deadline.remaining()))
    epoch = Token.parse(collection.token).epoch
    late = StaleReplica("the shard answered from a collection that has been replaced")
    others = {n: late for n, answer in answers.items() if answer.token.epoch != epoch}
    kept = {n: answer for n, answer in answers.items() if n not in others}
    return search, kept, {**missing, **others}


def _epochs(answers: Answers) -> set[str]:
    return {answer.token.epoch for answer in answers.values()}


def _worst(missing: Missing) -> MmeshError:
    if not missing:
        return ShardUnavailable("no index process answers")
    first = next(iter(missing.values()))
    told = StaleReplica, ResourceExhausted, DeadlineExceeded, DataLoss, InternalError
    if isinstance(first, told):
        return first
    return ShardUnavailable(f"no shard answered: {first.message}")


def _gather(order: VectorSearch, by_shard: Answers, missing: Missing, total: int) -> Gathered:
    answers = list(by_shard.values())
    lists = [
        {
            modality: join_shards([answer.lists[query][m] for answer in answers], order.limit)
            for m, modality in enumerate(order.modalities)
        }
        for query in range(len(order.queries))
    ]
    token = newest(answer.token for answer in answers)
    slowest = max(answer.service_s for answer in answers)
    unknown = {
        name: meant
        for name, meant in answers[0].unknown.items()
        if all(name in answer.unknown for answer in answers)
    }
    return Gathered(lists, token, len(answers), total, missing, slowest, unknown)
