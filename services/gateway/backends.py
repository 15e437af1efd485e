"""Calls to the other services, in plain Python; each has a deadline, failures are MmeshErrors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Sequence
from itertools import count, cycle
from typing import Any, TypeVar

import grpc
import numpy as np

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from mmesh.api.index.v1 import collection_pb2, collection_pb2_grpc, index_pb2, index_pb2_grpc
from mmesh.api.reranker.v1 import reranker_pb2, reranker_pb2_grpc
from mmesh.candidates import Candidate, Collection, Page
from mmesh.content import Content, Modality, Role
from mmesh.errors import DeadlineExceeded, Unavailable
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from mmesh.serving.interceptors import REQUEST_ID_KEY
from mmesh.status import error_of
from mmesh.transport import open_channel
from mmesh.vectors import FloatMatrix
from services.gateway.ports import Encoded, EncoderModel, ShardAnswer, ShardOrder
from services.gateway.ranking import Scored
from services.gateway.rerank import Judge, Verdict

Answer = TypeVar("Answer")
DISTRUST_S = 5.0
"""Seconds for which a process that did not answer is asked after the others."""


async def _answer(call: Awaitable[Answer], service: str) -> Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        error = error_of(failure)
        if error.reason == "UNAVAILABLE":
            raise Unavailable(f"{service} does not answer: {error.message}") from None
        raise error from None


def _options(deadline: Deadline) -> dict[str, Any]:
    metadata = ((REQUEST_ID_KEY, logs.request_id.get()),)
    return {"timeout": deadline.remaining(), "metadata": metadata}


class EncoderBackend:
    """The encoder."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub = encoder_pb2_grpc.EncoderServiceStub(self._channel)
        self._model: EncoderModel | None = None

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def model(self, deadline: Deadline) -> EncoderModel:
        """Return the encoder's model; remembered until an answer comes from another."""
        if self._model is None:
            self._model = await self.ask_model(deadline)
        return self._model

    async def ask_model(self, deadline: Deadline) -> EncoderModel:
        """Return the encoder's model as it is now."""
        request = encoder_pb2.GetModelRequest()
        reply = await _answer(self._stub.GetModel(request, **_options(deadline)), "the encoder")
        calibration = {
            wire.modality_from_pb(c.query_modality): wire.vectors_from_pb(c.vectors)
            for c in reply.calibration
        }
        known = {modality: rows for modality, rows in calibration.items() if modality}
        return EncoderModel(reply.name, reply.fingerprint, reply.dim, known)

    async def encode(
        self,
        inputs: Sequence[tuple[Content, str]],
        role: Role,
        deadline: Deadline,
        *,
        skip_problems: bool = False,
    ) -> Encoded:
        """Encode (content, instruction) pairs; candidates are bulk work, queries are not."""
        query = role is Role.QUERY
        skip, fail = encoder_pb2.ON_PROBLEM_SKIP, encoder_pb2.ON_PROBLEM_FAIL
        request = encoder_pb2.EncodeRequest(
            inputs=[
                encoder_pb2.Input(content=wire.content_to_pb(content), instruction=instruction)
                for content, instruction in inputs
            ],
            role=encoder_pb2.ROLE_QUERY if query else encoder_pb2.ROLE_CANDIDATE,
            priority=encoder_pb2.PRIORITY_INTERACTIVE if query else encoder_pb2.PRIORITY_BULK,
            on_problem=skip if skip_problems else fail,
        )
        reply = await _answer(self._stub.Encode(request, **_options(deadline)), "the encoder")
        if self._model and reply.model_fingerprint != self._model.fingerprint:
            self._model = None
        timing = reply.timing
        return Encoded(
            wire.vectors_from_pb(reply.vectors),
            reply.model_fingerprint,
            {p.input: wire.problem_from_pb(p.problem) for p in reply.problems},
            frozenset(reply.truncated),
            timing.batch_size,
            timing.prepare_seconds + timing.queue_seconds + timing.forward_seconds,
        )


class IndexBackend:
    """The index shards. Searches go to all; the log is one, so writes and reads of it go to any."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._channels = [open_channel(address) for address in addresses]
        self._shards = [index_pb2_grpc.IndexServiceStub(channel) for channel in self._channels]
        self._logs = [collection_pb2_grpc.CollectionServiceStub(c) for c in self._channels]
        self._turn = count()
        self._silent_at = [-DISTRUST_S] * len(addresses)

    @property
    def shard_count(self) -> int:
        """Shards of the deployment."""
        return len(self._shards)

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels:
            await channel.close()

    async def _any(
        self, stubs: Sequence[Any], method: str, request: Any, deadline: Deadline
    ) -> Any:
        """Call one process, and the next when it does not answer; the calls are safe to repeat.

        Processes that lately did not answer come last, and each but the last gets only its part
        of the time, so that one that hangs is not waited for to the end.
        """
        order = self._in_turn()
        for left, number in zip(range(len(order), 0, -1), order, strict=True):
            call = getattr(stubs[number], method)
            part = deadline if left == 1 else deadline.share(1 / left)
            try:
                return await _answer(call(request, **_options(part)), "the index")
            except (Unavailable, DeadlineExceeded):
                self._silent_at[number] = time.monotonic()
                if left == 1 or deadline.remaining() <= 0:
                    raise

    def _in_turn(self) -> list[int]:
        count, first = len(self._shards), next(self._turn)
        order = [(first + n) % count for n in range(count)]
        lately = time.monotonic() - DISTRUST_S
        return sorted(order, key=lambda number: self._silent_at[number] > lately)

    async def create_collection(
        self, name: str, model: EncoderModel, deadline: Deadline
    ) -> Collection:
        """Create a collection for `model`."""
        request = collection_pb2.CreateCollectionRequest(
            name=name, dim=model.dim, model_fingerprint=model.fingerprint
        )
        reply = await self._any(self._logs, "CreateCollection", request, deadline)
        return wire.collection_from_pb(reply.collection)

    async def get_collection(self, name: str, deadline: Deadline) -> Collection:
        """Return the collection."""
        request = collection_pb2.GetCollectionRequest(name=name)
        reply = await self._any(self._logs, "GetCollection", request, deadline)
        return wire.collection_from_pb(reply.collection)

    async def list_collections(
        self, page_size: int, page_token: str, deadline: Deadline
    ) -> tuple[list[Collection], str]:
        """Return a page of collections and the token of the next."""
        request = collection_pb2.ListCollectionsRequest(page_size=page_size, page_token=page_token)
        reply = await self._any(self._logs, "ListCollections", request, deadline)
        return [wire.collection_from_pb(c) for c in reply.collections], reply.next_page_token

    async def delete_collection(self, name: str, deadline: Deadline) -> int:
        """Delete the collection; return how many candidates it had."""
        request = collection_pb2.DeleteCollectionRequest(name=name)
        reply = await self._any(self._logs, "DeleteCollection", request, deadline)
        return int(reply.deleted_candidates)

    async def upsert(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: FloatMatrix,
        fingerprint: str,
        request_id: str,
        deadline: Deadline,
    ) -> str:
        """Store candidates durably, all or none; return the token."""
        request = index_pb2.UpsertCandidatesRequest(
            collection=collection,
            candidates=[wire.candidate_to_pb(candidate) for candidate in candidates],
            vectors=wire.vectors_to_pb(vectors),
            model_fingerprint=fingerprint,
            request_id=request_id or uuid.uuid4().hex,
        )
        reply = await self._any(self._shards, "UpsertCandidates", request, deadline)
        return str(reply.token)

    async def delete(
        self, collection: str, ids: Sequence[str], request_id: str, deadline: Deadline
    ) -> tuple[int, str]:
        """Delete candidates durably; return how many existed, and the token."""
        request = index_pb2.DeleteCandidatesRequest(
            collection=collection, ids=ids, request_id=request_id or uuid.uuid4().hex
        )
        reply = await self._any(self._shards, "DeleteCandidates", request, deadline)
        return int(reply.deleted), str(reply.token)

    async def get(self, collection: str, ids: Sequence[str], deadline: Deadline) -> list[Candidate]:
        """Return the candidates that exist, with content."""
        request = index_pb2.BatchGetCandidatesRequest(collection=collection, ids=ids)
        reply = await self._any(self._shards, "BatchGetCandidates", request, deadline)
        return [wire.candidate_from_pb(message) for message in reply.candidates]

    async def page(
        self, collection: str, page_size: int, page_token: str, deadline: Deadline
    ) -> Page:
        """Return a page of candidates without the bytes of pictures."""
        request = index_pb2.ListCandidatesRequest(
            collection=collection, page_size=page_size, page_token=page_token
        )
        reply = await self._any(self._shards, "ListCandidates", request, deadline)
        found = tuple(wire.candidate_from_pb(message) for message in reply.candidates)
        return Page(found, reply.next_page_token)

    async def search(self, shard: int, order: ShardOrder, deadline: Deadline) -> ShardAnswer:
        """Search one shard."""
        request = index_pb2.SearchRequest(
            collection=order.collection,
            queries=wire.vectors_to_pb(order.queries),
            model_fingerprint=order.fingerprint,
            modalities=[wire.modality_to_pb(modality) for modality in order.modalities],
            limit=order.limit,
            filter=wire.filter_to_pb(order.filter) if order.filter else None,
            consistency=wire.consistency_to_pb(order.consistency),
            token=order.token,
        )
        call = self._shards[shard].Search(request, **_options(deadline))
        reply = await _answer(call, f"index shard {shard}")
        lists = [
            _scored(message, modality)
            for message, modality in zip(reply.lists, cycle(order.modalities), strict=False)
        ]
        width = len(order.modalities)
        by_query = [lists[start : start + width] for start in range(0, len(lists), width)]
        return ShardAnswer(by_query, reply.token, reply.search_seconds + reply.queue_seconds)

    async def describe_shard(self, shard: int, deadline: Deadline) -> str:
        """Return a sentence about one shard."""
        call = self._shards[shard].GetShard(index_pb2.GetShardRequest(), **_options(deadline))
        reply = await _answer(call, f"index shard {shard}")
        return f"{reply.candidates} candidates, {reply.lag} writes behind"


def _scored(message: index_pb2.HitList, modality: Modality) -> list[Scored]:
    scores = np.frombuffer(message.scores, "<f4").tolist()
    return [
        Scored(candidate_id, modality, score, wire.attributes_from_pb(attributes.values))
        for candidate_id, score, attributes in zip(
            message.ids, scores, message.attributes, strict=True
        )
    ]


class RerankerBackend:
    """The reranker."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub = reranker_pb2_grpc.RerankerServiceStub(self._channel)
        self._judge: tuple[str, Judge] | None = None

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def judge(self, deadline: Deadline) -> Judge:
        """Return how far the judge is to be trusted; remembered until another one answers."""
        if self._judge is None:
            reply = await self._ask_model(deadline)
            weights = {wire.modality_from_pb(t.query_modality): _weights(t) for t in reply.trust}
            known = {modality: row for modality, row in weights.items() if modality}
            self._judge = (reply.fingerprint, Judge(known, reply.compares_modalities))
        return self._judge[1]

    async def rerank(
        self, query: Content, instruction: str, candidates: Sequence[Content], deadline: Deadline
    ) -> Verdict:
        """Return what the judge says of `candidates`."""
        request = reranker_pb2.RerankRequest(
            query=wire.content_to_pb(query),
            instruction=instruction,
            candidates=[wire.content_to_pb(candidate) for candidate in candidates],
        )
        reply = await _answer(self._stub.Rerank(request, **_options(deadline)), "the reranker")
        if self._judge and reply.model_fingerprint != self._judge[0]:
            self._judge = None
        scores = [s.score if s.HasField("score") else None for s in reply.scores]
        seconds = reply.judge_seconds + reply.queue_seconds
        return Verdict(scores, reply.model_fingerprint, reply.template, seconds)

    async def describe(self, deadline: Deadline) -> str:
        """Return a sentence about the judge."""
        reply = await self._ask_model(deadline)
        return f"{reply.name} {reply.template}".strip()

    async def _ask_model(self, deadline: Deadline) -> reranker_pb2.GetModelResponse:
        request = reranker_pb2.GetModelRequest()
        return await _answer(self._stub.GetModel(request, **_options(deadline)), "the reranker")


def _weights(trust: reranker_pb2.Trust) -> dict[Modality, float]:
    return {
        Modality.TEXT: trust.text_weight,
        Modality.IMAGE: trust.image_weight,
        Modality.IMAGE_TEXT: trust.image_text_weight,
    }
