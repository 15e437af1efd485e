"""A whole mesh as a search system of mteb's: pool into a collection, searches by the gateway."""

from __future__ import annotations

import logging
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmesh.aio import AsyncClient
from mmesh.candidates import Candidate
from mmesh.collections import Collection, CollectionSettings
from mmesh.content import Content
from mmesh.errors import CollectionNotFound, FailedPrecondition, Unavailable
from mmesh.evaluation.datasets.dataset import Task
from mmesh.evaluation.live.answers import Found
from mmesh.evaluation.live.flight import in_batches
from mmesh.evaluation.live.patience import PatientSearches
from mmesh.evaluation.live.searching import Plan, answers_to
from mmesh.evaluation.mteb import rows
from mmesh.evaluation.mteb.describing import describe
from mmesh.evaluation.mteb.reading import Asked, read_corpus, read_queries
from mmesh.evaluation.mteb.running import progress_bar, wait_for
from mmesh.evaluation.options import Effort, Options, Target
from mmesh.evaluation.rejections import Rejections
from mmesh.ingest import Progress
from mmesh.search import MergePolicy, Rerank

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Pool:
    """A corpus in its collection."""

    collection: str
    token: str
    names: dict[str, str] = field(default_factory=dict)
    """Ids of documents whose candidates are called otherwise, by what these are called."""


class MeshSearch:
    """A mesh, for tasks of retrieval and reranking: mteb's `SearchProtocol`.

    Each corpus gets a collection of its own, which is deleted after the search.

    Args:
        address: of the gateway; see `mmesh.Client`.
        target: which modality to ask for; see `Target`.
        rerank: first hits to judge; 0: none.
        merge: rank fusion; None: the mesh's own.
        model: of the collections, by name or fingerprint; empty: the mesh's first.
        exact: whether collections are searched exhaustively, as publications do.
        keep: keep the collections.
        effort: calls at a time, deadlines, patience.
        name: what mteb files the results under: ORGANISATION/MODEL.

    Example:
        mteb.evaluate(MeshSearch("localhost:50550"), mteb.get_tasks(["CIRRIT2IRetrieval"]))
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        target: Target | str = Target.ANY,
        rerank: int = 0,
        merge: MergePolicy | str | None = None,
        model: str = "",
        exact: bool = False,
        keep: bool = False,
        effort: Effort | None = None,
        name: str = "mmesh/mesh",
    ) -> None:
        fusion = MergePolicy(merge) if merge else None
        self._options = Options(target=Target(target), rerank=rerank, merge=fusion)
        self._address, self._model, self._exact, self._keep = address, model, exact, keep
        self._effort, self._name = effort or Effort(), name
        self._pool: _Pool | None = None
        self.rejections = Rejections()
        """What the mesh did not take of the latest corpus and its queries, and why."""
        self.degradations = Counter[str]()
        """What searches among it skipped, by reason."""

    # -- what mteb calls

    @cached_property
    def mteb_model_meta(self) -> Any:
        """Description of the mesh, whose revision changes with its models."""
        return wait_for(self._describe())

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None = None,
        **_: Any,
    ) -> None:
        """Put a corpus into a new collection.

        Raises:
            MmeshError: the mesh refuses the collection, or was away for too long.
        """
        self._drop()
        self.rejections, self.degradations = Rejections(), Counter()
        name = _collection_name(task_metadata.name, hf_split, hf_subset)
        with progress_bar(f"Ingesting {task_metadata.name}", len(corpus), encode_kwargs) as bar:
            self._pool = wait_for(self._fill(name, corpus, task_metadata, bar))

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **_: Any,
    ) -> Scores:
        """Return the scores of the first `top_k` documents (1,000 at most) of each query.

        With `top_ranked` each query is searched among these documents only.

        Raises:
            MmeshError: nothing is indexed, or the mesh was away for too long.
        """
        pool = self._pool
        if pool is None:
            raise FailedPrecondition("there is no corpus to search: call `index` first")
        found: Scores = {name: {} for name in queries["id"]}
        before = self.rejections.total
        asked = read_queries(queries, task_metadata, top_ranked, self.rejections)
        metrics, wanted = (f"hit@{top_k}",), rows.wanted_of(task_metadata)
        task = Task(task_metadata.name, "", "", metrics, wanted)
        plan = Plan(pool.collection, pool.token, task, self._options, ())
        try:
            with progress_bar(f"Searching {task.name}", len(queries), encode_kwargs) as bar:
                wait_for(self._search(plan, asked, pool, found, bar))
        finally:
            self._drop()
        if lost := self.rejections.total - before:
            logger.warning("%s: %s queries are refused and find nothing", task.name, lost)
        if self.degradations:
            logger.warning("%s: answers are degraded: %s", task.name, dict(self.degradations))
        return found

    # -- what it asks of the mesh

    def _client(self) -> AsyncClient:
        return AsyncClient(self._address)

    async def _create(self, client: AsyncClient, name: str) -> Collection:
        settings = CollectionSettings(index_factory="Flat") if self._exact else None
        return await client.create_collection(name, settings, model=self._model)

    async def _describe(self) -> Any:
        """Ask a collection for its model, and a search for its judge."""
        async with self._client() as client, AsyncExitStack() as stack:
            collection = await self._create(client, _collection_name("probe"))
            stack.push_async_callback(client.delete_collection, collection.name)
            experiment: dict[str, Any] = {"target": self._options.target.value}
            if self._exact:
                experiment["exact"] = True
            if self._options.merge:
                experiment["merge"] = self._options.merge.value
            if self._options.rerank:
                experiment["rerank"] = self._options.rerank
                experiment["judge"] = await self._judge_of(client, collection.name)
            fingerprint = collection.model_fingerprint
            return describe(self._name, fingerprint, collection.dim, experiment=experiment)

    async def _judge_of(self, client: AsyncClient, collection: str) -> str:
        probe = Candidate("probe", Content.of("a probe"))
        token = (await client.upsert_candidates(collection, [probe])).token
        timeout_s = self._effort.timeout_s
        result = await client.search(
            collection, "a probe", rerank=Rerank(1), token=token, timeout=timeout_s
        )
        if not result.receipt.reranker_fingerprint:
            reasons = ", ".join(one.reason for one in result.degradations) or "no reason given"
            raise Unavailable(f"the mesh judges nothing now ({reasons}): `rerank` needs a reranker")
        return f"{result.receipt.reranker_fingerprint} {result.receipt.reranker_template}".strip()

    async def _fill(self, name: str, corpus: Any, task: Any, bar: Any) -> _Pool:
        names: dict[str, str] = {}
        async with self._client() as client, AsyncExitStack() as stack:
            await self._create(client, name)
            stack.push_async_callback(client.delete_collection, name)

            def note(progress: Progress) -> None:
                bar.update(progress.stored + progress.rejected - bar.n)

            source = read_corpus(corpus, task, names, self.rejections)
            report = await client.ingest(
                name, source, patience_s=self._effort.patience_s, on_progress=note
            )
            stack.pop_all()  # it is done: nothing is taken back
        for one in report.rejected:
            self.rejections.add(names.get(one.id, one.id), one.error.reason, one.error.message)
        if self.rejections.total:
            counts = dict(self.rejections.counts)
            logger.warning("%s: documents that the mesh does not take: %s", task.name, counts)
        logger.info("%s is in the collection %s", task.name, name)
        return _Pool(name, report.token, names)

    async def _search(
        self, plan: Plan, asked: Iterator[Asked], pool: _Pool, found: Scores, bar: Any
    ) -> None:
        """Put the scores of what is asked into `found`."""
        async with self._client() as client:
            calls = PatientSearches(client, self._effort)

            async def ask(batch: list[Asked]) -> None:
                for answer in await answers_to(batch, plan, calls):
                    found[answer.query] = _scores(answer.hits, pool.names)
                    self.degradations.update(answer.degradations)
                    if answer.refusal:
                        reason, _, message = answer.refusal.partition(": ")
                        self.rejections.add(answer.query, reason, message)
                bar.update(len(batch))

            await in_batches(asked, self._effort, ask)

    def _drop(self) -> None:
        """Delete the collection of the corpus, unless it is to be kept."""
        pool, self._pool = self._pool, None
        if pool is not None and not self._keep:
            wait_for(self._delete(pool.collection))

    async def _delete(self, collection: str) -> None:
        async with self._client() as client:
            with suppress(CollectionNotFound):
                await client.delete_collection(collection)


def _collection_name(*parts: str) -> str:
    """Return a name that no other collection has."""
    plain = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    return f"mteb-{plain[:40].rstrip('-')}-{uuid.uuid4().hex[:12]}"


def _scores(hits: Sequence[Found], names: Mapping[str, str]) -> dict[str, float]:
    """Return scores by document that put the documents in the order of the hits.

    trec_eval, by which mteb measures, reads scores as float32 and orders equal ones by id.
    """
    scores = np.array([hit.score for hit in hits], np.float32)
    for place in range(1, len(scores)):
        below = np.nextafter(scores[place - 1], np.float32(-np.inf))
        scores[place] = min(scores[place], below)
    ids = (names.get(hit.id, hit.id) for hit in hits)
    return dict(zip(ids, scores.tolist(), strict=True))
