"""LRU cache of query embeddings, and one call to the encoder for all that are new to a model."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import replace

from cachetools import LRUCache

from mmesh.content import Role
from mmesh.errors import InvalidField, MmeshError
from mmesh.serving.deadline import Deadline
from services.gateway import metrics
from services.gateway.interfaces import Encoder
from services.gateway.search.run import QueryEmbedding, Run


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
        calls = (self._encode(model, runs, deadline) for model, runs in missing.items())
        return max(await asyncio.gather(*calls), default=0.0)

    async def _encode(
        self, model: str, missing: dict[Hashable, list[Run]], deadline: Deadline
    ) -> float:
        first = [runs[0].search for runs in missing.values()]
        inputs = [(search.query, search.instruction) for search in first]
        try:
            encoded = await self._encoder.encode(model, inputs, Role.QUERY, deadline)
        except MmeshError as error:
            for run in (run for runs in missing.values() for run in runs):
                run.error = error
            return 0.0
        for number, (key, runs) in enumerate(missing.items()):
            problem = encoded.problems.get(number)
            embedding = QueryEmbedding(
                encoded.vectors[number], encoded.fingerprint, number in encoded.truncated,
                encoded.batch_size, cached=False,
            )  # fmt: skip
            for run in runs:
                run.embedding = embedding
                run.error = _about_query(problem) if problem else None
            if problem is None:
                self._remember(key, embedding)
        return encoded.service_s

    def _remember(self, key: Hashable, embedding: QueryEmbedding) -> None:
        if self._cache.maxsize:
            vector = embedding.vector.copy()  # a view would keep the rows of its whole batch
            self._cache[key] = replace(embedding, vector=vector, cached=True, batch_size=0)


def _about_query(error: MmeshError) -> MmeshError:
    if isinstance(error, InvalidField):
        return type(error)("query" + error.field.removeprefix("content"), error.problem)
    return error
