"""gRPC client of the reranker, in plain Python; each has a deadline, failures are MmeshErrors."""

from __future__ import annotations

from collections.abc import Sequence

from mmesh import wire
from mmesh.api.reranker.v1 import reranker_pb2, reranker_pb2_grpc
from mmesh.content import Content, Modality
from mmesh.errors import MmeshError
from mmesh.mesh_status import ServiceRole, ServiceState, ServiceStatus
from mmesh.serving.deadline import Deadline
from mmesh.wire.encoding import built, content_bytes, taking_bytes
from mmesh.wire.transport import open_channel
from services.gateway.interfaces import Judge, Verdict
from services.gateway.rpc import answer_of, options_for


class RerankerBackend:
    """The reranker."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address)
        self._stub = reranker_pb2_grpc.RerankerServiceStub(taking_bytes(self._channel))
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
        self,
        query: Content,
        instruction: str,
        candidates: Sequence[Content],
        deadline: Deadline,
        max_image_tokens: int = 0,
    ) -> Verdict:
        """Return what the judge says of `candidates` in time, and for these image tokens."""

        def build() -> reranker_pb2.RerankRequest:
            return reranker_pb2.RerankRequest(
                query=wire.content_to_pb(query),
                instruction=instruction,
                candidates=[wire.content_to_pb(candidate) for candidate in candidates],
                budget=reranker_pb2.Budget(image_tokens=max_image_tokens),
            )

        request = await built(content_bytes([query, *candidates]), build)
        reply = await answer_of(self._stub.Rerank(request, **options_for(deadline)), "the reranker")
        if self._judge and reply.model_fingerprint != self._judge[0]:
            self._judge = None
        scores = [s.score if s.HasField("score") else None for s in reply.scores]
        seconds = reply.judge_seconds + reply.queue_seconds
        return Verdict(scores, reply.model_fingerprint, reply.template, seconds)

    async def status(self, deadline: Deadline) -> list[ServiceStatus]:
        """Return the state of the reranker: which judge it has, or why it does not answer."""
        try:
            reply = await self._ask_model(deadline)
        except MmeshError as error:
            state, detail = ServiceState.of(error), error.message
        else:
            state, detail = ServiceState.SERVING, f"{reply.name} {reply.template}".strip()
        return [ServiceStatus(ServiceRole.RERANKER, state, self._address, detail=detail)]

    async def _ask_model(self, deadline: Deadline) -> reranker_pb2.GetModelResponse:
        request = reranker_pb2.GetModelRequest()
        return await answer_of(
            self._stub.GetModel(request, **options_for(deadline)), "the reranker"
        )


def _weights(trust: reranker_pb2.Trust) -> dict[Modality, float]:
    return {
        Modality.TEXT: trust.text_weight,
        Modality.IMAGE: trust.image_weight,
        Modality.IMAGE_TEXT: trust.image_text_weight,
    }
