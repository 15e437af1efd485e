"""Calls to the encoder, in plain Python; each has a deadline, failures are MmeshErrors."""

from __future__ import annotations

from collections.abc import Sequence

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from mmesh.content import Content, Role
from mmesh.serving.deadline import Deadline
from mmesh.transport import open_channel
from services.gateway.calls import answer_of, options_for
from services.gateway.ports import Encoded, EncoderModel


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
        reply = await answer_of(
            self._stub.GetModel(request, **options_for(deadline)), "the encoder"
        )
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
        reply = await answer_of(self._stub.Encode(request, **options_for(deadline)), "the encoder")
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
