"""Moves an alias from its collection to one of another model, while both are searched and written.

The log is the system of record, so the whole state of a migration is in it, and every step is one
transaction that may be repeated: whoever crashes, at whatever point, the same command goes on.

`begin` creates a collection of the new model and makes the two each other's mirror. From then on
the index commits every write to either as one write to both; a gateway that does not know yet is
refused (MODEL_MISMATCH) and encodes for both. So two writers cannot leave the two in different
orders, as they could if a gateway wrote twice, and nothing has to catch up before a switch.

`copy` fills the new one up with what is older than the mirror. The index takes a candidate only if
the new collection has no row of it, nor of its deletion, and the old one still has it. So what was
read some time ago neither replaces what is newer nor brings back what is gone. What is missing is
found by comparing the ids of both, so a copy that was interrupted has nothing to remember.

`compare` asks both the same. `switch` moves the alias, at any moment after the copy; each search is
of one collection, by its own name and model. Both stay in step, so `roll_back` is the alias moved
back, until `finish` deletes the old collection, or `cancel` the new one.

A candidate that the new model cannot encode is missing in the new collection only, which `switch`
refuses unless told. While an encoder of either model is away, searches go on and writes wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmesh.aio import AsyncClient
from mmesh.candidates import Candidate, WriteReport
from mmesh.collections import Collection
from mmesh.content import Content, Modality
from mmesh.errors import FailedPrecondition, MessageTooLarge
from mmesh.ingest import Progress
from mmesh.search import Consistency, Rerank, SearchResult
from mmesh.values.tokens import Token

PAGE, GET = 1000, 32
"""Candidates that one call lists, and gets with their pictures."""
DEPTH = 10
"""Hits of a query that are compared."""
QUERIES, QUERY_CHARACTERS, LOOKED_THROUGH = 50, 200, 20_000
"""Queries of a comparison by default, and the candidates that they are taken from."""
NO_RERANK = Rerank(0)


@dataclass(frozen=True, slots=True)
class Migration:
    """Two collections in step, and the alias that names one of them."""

    alias: str
    old: Collection
    new: Collection
    is_switched: bool
    """The alias names the new one."""

    @property
    def missing(self) -> dict[Modality, int]:
        """Candidates by modality that only the old collection has; empty when there are none."""
        lacks = {m: self.old.candidates[m] - self.new.candidates[m] for m in Modality}
        return {modality: count for modality, count in lacks.items() if count > 0}


async def begin(client: AsyncClient, alias: str, model: str) -> Migration:
    """Return the migration of `alias` to a model, by name or fingerprint, begun unless it was.

    Raises:
        FailedPrecondition: `alias` is no alias, or its collection has that model.
        ModelMismatch: no encoder of the mesh serves the model.
        CollectionExists: a migration to another model is under way.
    """
    live = await client.get_collection(alias)
    if live.name == alias:
        raise FailedPrecondition(
            f"{alias!r} is a collection itself, and its name cannot move. Let your programs use an "
            f"alias of it, made by `mmesh alias set ALIAS {alias}`, and migrate that"
        )
    if live.settings.mirror:
        migration = await find(client, alias)
        await client.create_collection(migration.new.name, model=model)
        return migration
    name = await _clear_name(client, live, alias)
    new = await client.create_collection(
        name, replace(live.settings, mirror=live.name, read_only=False), model=model
    )
    if new.model_fingerprint == live.model_fingerprint:
        await client.delete_collection(name)
        raise FailedPrecondition(f"{alias!r} has the model {new.model_fingerprint!r} already")
    await client.update_collection(live.name, mirror=name)
    return await find(client, alias)


async def _clear_name(client: AsyncClient, live: Collection, alias: str) -> str:
    """Return a name for the new collection; what is left of a beginning that failed is deleted.

    Raises:
        FailedPrecondition: a collection was in step with the live one and is not any more.
    """
    there = await client.list_collections()
    for left in (one for one in there if one.settings.mirror == live.name):
        if Token.parse(left.token).seq:
            raise FailedPrecondition(
                f"{left.name!r} is no longer in step with {live.name!r}; delete it first"
            )
        await client.delete_collection(left.name)
    taken = {name for one in there for name in (one.name, *one.aliases)}
    stem = alias[:56]
    return next(name for n in range(2, 10**6) if (name := f"{stem}-{n}") not in taken)


async def find(client: AsyncClient, alias: str) -> Migration:
    """Return the migration of an alias as it is now.

    Raises:
        FailedPrecondition: there is none, or the two collections are not in step any more.
    """
    # One call, which sees both between the same two writes.
    there = {one.name: one for one in await client.list_collections()}
    live = next((one for one in there.values() if alias in one.aliases), None)
    if live is None or not live.settings.mirror:
        raise FailedPrecondition(f"{alias!r} is not being migrated")
    other = there[live.settings.mirror]
    if other.settings.mirror != live.name:
        raise FailedPrecondition(
            f"{other.name!r} is no longer in step with {live.name!r}; delete it and begin again"
        )
    old, new = sorted((live, other), key=lambda one: one.create_time)
    return Migration(alias, old, new, is_switched=new is live)


# -- the copy


async def copy(
    client: AsyncClient,
    migration: Migration,
    on_progress: Callable[[int], None] = lambda done: None,
) -> WriteReport:
    """Fill the new collection up; `on_progress` gets the candidates of the old one done so far.

    The report names candidates that the new model cannot encode.
    """
    missing = _Missing(client, migration)

    def note(progress: Progress) -> None:
        on_progress(missing.held + progress.settled)

    return await client.ingest(
        migration.new.name, missing.candidates(), fill=True, on_progress=note
    )


class _Missing:
    """What the old collection has and the new one lacks."""

    def __init__(self, client: AsyncClient, migration: Migration) -> None:
        self._client, self._migration = client, migration
        self.held = 0
        """Candidates passed by that both have."""

    async def candidates(self) -> AsyncIterator[Candidate]:
        """Yield them by id, with their pictures."""
        ids: list[str] = []
        async for candidate_id in self._ids():
            ids.append(candidate_id)
            if len(ids) == GET:
                async for candidate in self._get(ids):
                    yield candidate
                ids = []
        async for candidate in self._get(ids):
            yield candidate

    async def _ids(self) -> AsyncIterator[str]:
        held = _listed(self._client, self._migration.new.name)
        at = await anext(held, None)
        async for wanted in _listed(self._client, self._migration.old.name):
            while at is not None and at.id.encode() < wanted.id.encode():
                at = await anext(held, None)
            if at is not None and at.id == wanted.id:
                self.held += 1
            else:
                yield wanted.id

    async def _get(self, ids: Sequence[str]) -> AsyncIterator[Candidate]:
        if not ids:
            return
        try:
            found = await self._client.batch_get_candidates(self._migration.old.name, ids)
        except MessageTooLarge:
            if len(ids) == 1:
                raise
            for one in ids:
                async for candidate in self._get([one]):
                    yield candidate
            return
        for candidate in found:
            yield candidate


async def _listed(client: AsyncClient, collection: str) -> AsyncIterator[Candidate]:
    """Yield all candidates by the bytes of their ids, without pictures."""
    token = ""
    while True:
        page = await client.list_candidates(collection, page_size=PAGE, page_token=token)
        for candidate in page.candidates:
            yield candidate
        if not (token := page.next_token):
            return


# -- the comparison


@dataclass(frozen=True, slots=True)
class Pair:
    """What both collections found for one query."""

    query: Content
    old: SearchResult
    new: SearchResult

    @property
    def overlap(self) -> float | None:
        """Share of the hits that both found; None where neither found anything."""
        old, new = _ids_of(self.old), _ids_of(self.new)
        return len(set(old) & set(new)) / max(len(old), len(new)) if old or new else None

    @property
    def correlation(self) -> float | None:
        """Spearman's rank correlation of the hits that both found, -1..1; None below two."""
        old, new = _ids_of(self.old), _ids_of(self.new)
        shared = [candidate_id for candidate_id in old if candidate_id in new]
        if len(shared) < 2:
            return None
        ranks = np.argsort(np.argsort([new.index(candidate_id) for candidate_id in shared]))
        return float(np.corrcoef(np.arange(len(shared)), ranks)[0, 1])


class Comparison:
    """Figures of two collections that were asked the same; it keeps no pair."""

    def __init__(self) -> None:
        self.asked = 0
        """Queries."""
        self._overlaps: list[float] = []
        self._correlations: list[float] = []

    def add(self, pair: Pair) -> None:
        """Count a pair in."""
        self.asked += 1
        if pair.overlap is not None:
            self._overlaps.append(pair.overlap)
        if pair.correlation is not None:
            self._correlations.append(pair.correlation)

    @property
    def overlap(self) -> float | None:
        """Mean share of hits in common; None while nothing was found."""
        return float(np.mean(self._overlaps)) if self._overlaps else None

    @property
    def correlation(self) -> float | None:
        """Mean rank correlation of the queries that have one."""
        return float(np.mean(self._correlations)) if self._correlations else None


async def compare(
    client: AsyncClient,
    migration: Migration,
    queries: Sequence[Content] = (),
    *,
    include_content: bool = False,
) -> AsyncIterator[Pair]:
    """Ask both the same, without reranking; by default texts that the old one has, or pictures.

    A pair may hold twenty pictures with `include_content`: use one before the next is asked for.
    """
    names = migration.old.name, migration.new.name
    async for query in _given(queries) if queries else _own_queries(client, migration):
        # One by one, so that an answer holds the pictures of one side only.
        old, new = [
            await client.search(
                name, query, limit=DEPTH, rerank=NO_RERANK, include_content=include_content
            )
            for name in names
        ]
        yield Pair(query, old, new)


async def _given(queries: Sequence[Content]) -> AsyncIterator[Content]:
    for query in queries:
        yield query


async def _own_queries(client: AsyncClient, migration: Migration) -> AsyncIterator[Content]:
    """Yield beginnings of texts; of a collection of pictures only, pictures that both hold."""
    texts = _beginning_of(client, migration.old.name)
    found = [one.content.text.strip()[:QUERY_CHARACTERS] async for one in texts]
    queries = _spread([text for text in found if text])
    for text in queries:
        yield Content.of(text)
    if queries:
        return
    ids = [one.id async for one in _beginning_of(client, migration.new.name)]
    for candidate_id in _spread(ids):
        for one in await client.batch_get_candidates(migration.new.name, [candidate_id]):
            if one.problem is None:
                yield one.content


async def _beginning_of(client: AsyncClient, collection: str) -> AsyncIterator[Candidate]:
    """Yield the first candidates, without pictures."""
    looked = 0
    async for candidate in _listed(client, collection):
        yield candidate
        looked += 1
        if looked == LOOKED_THROUGH:
            return


def _spread(found: Sequence[str]) -> list[str]:
    """Return so many as a comparison asks, at even distances."""
    count = min(QUERIES, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def _ids_of(result: SearchResult) -> list[str]:
    return [hit.id for hit in result.hits]


# -- the end


async def switch(client: AsyncClient, alias: str, *, allow_missing: bool = False) -> Migration:
    """Let the alias name the new collection.

    Raises:
        FailedPrecondition: the new collection lacks candidates, and that is not allowed.
        Unavailable: a shard cannot search the new collection.
    """
    migration = await find(client, alias)
    if migration.missing and not allow_missing:
        lacks = ", ".join(f"{n} of modality {m.value}" for m, n in migration.missing.items())
        raise FailedPrecondition(f"{migration.new.name!r} lacks candidates: {lacks}")
    await client.search(
        migration.new.name,
        alias,
        limit=1,
        rerank=NO_RERANK,
        consistency=Consistency.STRONG,
        require_all_shards=True,
    )
    await client.set_alias(alias, migration.new.name)
    return replace(migration, is_switched=True)


async def roll_back(client: AsyncClient, alias: str) -> Migration:
    """Let the alias name the old collection again; both stay in step."""
    migration = await find(client, alias)
    await client.set_alias(alias, migration.old.name)
    return replace(migration, is_switched=False)


async def finish(client: AsyncClient, alias: str) -> int:
    """Delete the old collection; return how many candidates it had.

    Raises:
        FailedPrecondition: the alias names it.
    """
    migration = await find(client, alias)
    if not migration.is_switched:
        raise FailedPrecondition(f"{alias!r} still names {migration.old.name!r}; switch it first")
    return await client.delete_collection(migration.old.name)


async def cancel(client: AsyncClient, alias: str) -> int:
    """Delete the new collection; return how many candidates it had.

    Raises:
        FailedPrecondition: the alias names it.
    """
    migration = await find(client, alias)
    if migration.is_switched:
        raise FailedPrecondition(f"{alias!r} names {migration.new.name!r}; roll back first")
    return await client.delete_collection(migration.new.name)
