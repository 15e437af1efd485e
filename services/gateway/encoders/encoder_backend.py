"""gRPC client of one encoder, in plain Python; each has a deadline, failures are MmeshErrors."""

from __future__ import annotations

from collections.abc import Sequence

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from mmesh.content import Content, Role
from mmesh.errors import MmeshError, ModelMismatch
from mmesh.serving.deadline import Deadline
from mmesh.wire.encoding import built, content_bytes
from services.gateway.balanced_channel import BalancedChannel
from services.gateway.circuit_breaker import CircuitBreaker
from services.gateway.interfaces import EncodedBatch, ReferenceRows, ServedModel
from services.gateway.rpc import answer_of, options_for

DISTRUST_S, LEAST_S = 2.0, 0.5
"""Seconds for which an encoder that failed is asked after all others, and that a call must have
had for its lateness to be a failure."""


class EncoderBackend:
    """One encoder."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = BalancedChannel(address, encoder_pb2_grpc.EncoderServiceStub)
        self._circuit = CircuitBreaker(open_s=DISTRUST_S, least_s=LEAST_S)
        self.model: ServedModel | None = None
        """As last heard; None when it has not been reached, or has another since."""

    def start(self) -> None:
        """Follow the addresses of its name."""
        self._channel.start()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    @property
    def is_trusted(self) -> bool:
        """Tell whether it has not failed just now."""
        return self._circuit.is_closed

    async def ask_model(self, deadline: Deadline) -> ServedModel:
        """Return the encoder's model as it is now."""
        request = encoder_pb2.GetModelRequest()
        reply = await answer_of(
            self._channel.stub.GetModel(request, **options_for(deadline)), "the encoder"
        )
        reference = {
            modality: ReferenceRows.of(
                wire.vectors_from_pb(one.vectors),
                wire.vectors_from_pb(one.candidates) if one.HasField("candidates") else None,
            )
            for one in reply.calibration
            if (modality := wire.modality_from_pb(one.query_modality)) is not None
        }
        read = (wire.modality_from_pb(value) for value in reply.modalities)
        modalities = frozenset(modality for modality in read if modality)
        self.model = ServedModel(
            reply.name, reply.fingerprint, reply.dim, reference, modalities, reply.max_text_tokens
        )
        return self.model

    async def encode(
        self,
        fingerprint: str,
        inputs: Sequence[tuple[Content, str]],
        role: Role,
        deadline: Deadline,
    ) -> EncodedBatch:
        """Encode (content, instruction) pairs; candidates are bulk work, queries are not.

        Raises:
            ModelMismatch: it has another model by now.
        """
        size = content_bytes(content for content, _ in inputs)
        request = await built(size, lambda: _request(inputs, role))
        given_s = deadline.remaining()
        try:
            call = self._channel.stub.Encode(request, **options_for(deadline))
            reply = await answer_of(call, "the encoder")
        except MmeshError as error:
            self._circuit.note(error, given_s)
            raise
        if reply.model_fingerprint != fingerprint:
            self.model = None
            raise ModelMismatch(
                f"the encoder at {self.address} has the model {reply.model_fingerprint!r} by now",
                {"model_fingerprint": fingerprint},
            )
        timing = reply.timing
        return EncodedBatch(
            wire.vectors_from_pb(reply.vectors),
            reply.model_fingerprint,
            {p.input: wire.problem_from_pb(p.problem) for p in reply.problems},
            frozenset(reply.truncated),
            timing.batch_size,
            timing.prepare_seconds + timing.queue_seconds + timing.forward_seconds,
            _notices_of(reply),
            self.model.max_text_tokens if self.model else 0,
        )


def _notices_of(reply: encoder_pb2.EncodeResponse) -> dict[int, frozenset[str]]:
    found: dict[int, frozenset[str]] = {}
    for notice in reply.notices:
        found[notice.input] = found.get(notice.input, frozenset()) | {notice.reason}
    return found


def _request(inputs: Sequence[tuple[Content, str]], role: Role) -> encoder_pb2.EncodeRequest:
    query = role is Role.QUERY
    return encoder_pb2.EncodeRequest(
        inputs=[
            encoder_pb2.Input(content=wire.content_to_pb(content), instruction=instruction)
            for content, instruction in inputs
        ],
        role=encoder_pb2.ROLE_QUERY if query else encoder_pb2.ROLE_CANDIDATE,
        priority=encoder_pb2.PRIORITY_INTERACTIVE if query else encoder_pb2.PRIORITY_BULK,
        on_problem=encoder_pb2.ON_PROBLEM_SKIP,
    )
