"""A reranker and an encoder, asked directly, as `mmesh.models.parity` asks models."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

import grpc

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from mmesh.api.reranker.v1 import reranker_pb2, reranker_pb2_grpc
from mmesh.content import Content, Role
from mmesh.errors import DeadlineExceeded, InvalidField
from mmesh.vectors import FloatMatrix
from mmesh.wire.errors import error_of

Answer = TypeVar("Answer")
PATIENCE_S = 300.0
"""Deadline of each call: a large model on a busy machine is slow, not wrong."""
_ROLES = {Role.QUERY: encoder_pb2.ROLE_QUERY, Role.CANDIDATE: encoder_pb2.ROLE_CANDIDATE}


class RerankerAnswers:
    """A reranker service at the other end of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = reranker_pb2_grpc.RerankerServiceStub(channel)

    async def model(self) -> reranker_pb2.GetModelResponse:
        """Return what the judge says of itself."""
        request = reranker_pb2.GetModelRequest()
        return await _answer(self._stub.GetModel(request, timeout=PATIENCE_S))

    async def score(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        """Return a score for each candidate, judged anew in one call.

        Raises:
            InvalidField: the judge does not read the query or a candidate.
            DeadlineExceeded: it takes too long.
        """
        request = reranker_pb2.RerankRequest(
            query=wire.content_to_pb(query),
            instruction=instruction,
            candidates=[wire.content_to_pb(candidate) for candidate in candidates],
            fresh=True,
        )
        reply = await _answer(self._stub.Rerank(request, timeout=PATIENCE_S))
        for number, judged in enumerate(reply.scores):
            if judged.problem == "DEADLINE":
                raise DeadlineExceeded(f"a pair is not judged in {PATIENCE_S:.0f} s")
            if judged.problem:
                raise InvalidField(f"candidates[{number}]", f"is not judged: {judged.problem}")
        return [judged.score for judged in reply.scores]


class EncoderAnswers:
    """An encoder service at the other end of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = encoder_pb2_grpc.EncoderServiceStub(channel)

    async def model(self) -> encoder_pb2.GetModelResponse:
        """Return what the model says of itself."""
        request = encoder_pb2.GetModelRequest()
        return await _answer(self._stub.GetModel(request, timeout=PATIENCE_S))

    async def encode(
        self, contents: Sequence[Content], role: Role, instruction: str
    ) -> FloatMatrix:
        """Return unit rows (n, dim), encoded in one call."""
        inputs = [
            encoder_pb2.Input(content=wire.content_to_pb(content), instruction=instruction)
            for content in contents
        ]
        request = encoder_pb2.EncodeRequest(inputs=inputs, role=_ROLES[role])
        reply = await _answer(self._stub.Encode(request, timeout=PATIENCE_S))
        return wire.vectors_from_pb(reply.vectors)


async def _answer(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from None
