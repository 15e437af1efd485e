"""LRU cache of query embeddings, and one call to the encoder for all that are new to a model."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import chain

from cachetools import LRUCache

from mmesh.content import Role
from mmesh.errors import InvalidField, MmeshError
from mmesh.serving.deadline import Deadline
from services.gateway import metrics
from services.gateway.interfaces import Encoder
from services.gateway.search.run import QueryEmbedding, Run, guarded


class QueryEmbedder:
    """Embeds the queries of searches, with an LRU cache by model, content and instruction."""

    def __init__(self, encoder: Encoder, cache_size: int) -> None:
        self._encoder = encoder
        self._cache: LRUCache[Hashable, QueryEmbedding] = LRUCache(cache_size)

    async def embed(self, runs: Sequence[Run], deadline: Deadline) -> float:
        """Fill in the embedding, or the error, of every run; return seconds in the encoder."""
        missing: dict[str, dict[Hashable, list[Run]]] = {}
        for run in runs:
            key = (run.model, run.search.query.digest(), run.search.instruction)
            run.embedding = self._cache.get(key)
            outcome = "miss" if run.embedding is None else "hit"
            metrics.embedding_cache_total.labels(outcome).inc()
            if run.embedding is None:
                missing.setdefault(run.model, {}).setdefault(key, []).append(run)
        seconds = [0.0]
        calls = (
            guarded(chain(*by_key.values()), self._encode(model, by_key, deadline, seconds))
            for model, by_key in missing.items()
        )
        await asyncio.gather(*calls)
        return max(seconds)

    async def _encode(
        self,
        model: str,
        missing: dict[Hashable, list[Run]],
        deadline: Deadline,
        seconds: list[float],
    ) -> None:
        """Embed what one model is to embed; add the time that it took in the encoder."""
        first = [runs[0].search for runs in missing.values()]
        inputs = [(search.query, search.instruction) for search in first]
        encoded = await self._encoder.encode(model, inputs, Role.QUERY, deadline)
        for number, (key, runs) in enumerate(missing.items()):
            problem = encoded.problems.get(number)
            embedding = QueryEmbedding(
                encoded.vectors[number],
                encoded.fingerprint,
                number in encoded.truncated,
                encoded.batch_size,
                cached=False,
                notices=encoded.notices.get(number, frozenset()),
            )
            for run in runs:
                run.embedding = embedding
                run.error = _about_query(problem) if problem else None
            if problem is None:
                self._remember(key, embedding)
        seconds.append(encoded.service_s)

    def _remember(self, key: Hashable, embedding: QueryEmbedding) -> None:
        if self._cache.maxsize:
            vector = embedding.vector.copy()  # a view would keep the rows of its whole batch
            self._cache[key] = replace(embedding, vector=vector, cached=True, batch_size=0)


def _about_query(error: MmeshError) -> MmeshError:
    if isinstance(error, InvalidField):
        return type(error)("query" + error.field.removeprefix("content"), error.problem)
    return error
