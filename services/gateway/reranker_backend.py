"""gRPC client of the reranker, in plain Python; each has a deadline, failures are MmeshErrors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from mmesh import wire
from mmesh.api.reranker.v1 import reranker_pb2, reranker_pb2_grpc
from mmesh.content import Content, Modality
from mmesh.errors import DeadlineExceeded, MmeshError, Unavailable
from mmesh.mesh_status import ServiceRole, ServiceState, ServiceStatus
from mmesh.serving.deadline import Deadline
from mmesh.wire.encoding import built, content_bytes
from services.gateway.balanced_channel import BalancedChannel
from services.gateway.circuit_breaker import CircuitBreaker
from services.gateway.interfaces import Judge, Verdict
from services.gateway.rpc import answer_of, options_for

PAUSE_S, LEAST_S, FAILURES = 5.0, 0.5, 3
"""Seconds between the calls that try a reranker which was late so often in a row, and that a call
must have had for its lateness to count."""
RENEWED_S, LOOK_S = 10.0, 5.0
"""Seconds after which a judge that was not heard of is asked about again, and for how long."""
CALL_BYTES = 4 << 20
"""Of candidates in one call, unless one alone is larger. gRPC copies a message on the event loop of
the reranker, which stands still meanwhile: 0.4 s of CPU for 48 MiB where its memory is new."""


class RerankerBackend:
    """The reranker, or those behind its name.

    While its circuit is open, calls fail at once, with `Unavailable`: a search that waits for a
    reranker which hangs has its hits later, and no better. One that is away costs no time, so it
    opens nothing, and is used again as soon as it is there.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._circuit = CircuitBreaker(open_s=PAUSE_S, least_s=LEAST_S, failures=FAILURES)
        self._channel = BalancedChannel(address, reranker_pb2_grpc.RerankerServiceStub)
        self._judge: tuple[str, Judge] | None = None
        self._heard_at = 0.0  # from this judge
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the addresses of its name."""
        self._channel.start()

    async def close(self) -> None:
        """Close the channel."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await self._channel.close()

    async def judge(self, deadline: Deadline) -> Judge:
        """Return how far the judge is to be trusted; remembered until another one answers.

        One that has no say is never asked to judge. So its address is looked at from time to time,
        while searches go on with what is known.
        """
        if self._judge is None:
            with self._watched(deadline):
                return self._take(await self._ask_model(deadline))
        is_looking = self._looking is not None and not self._looking.done()
        if not is_looking and time.monotonic() - self._heard_at > RENEWED_S:
            self._looking = asyncio.create_task(self._look())
        return self._judge[1]

    def _take(self, reply: reranker_pb2.GetModelResponse) -> Judge:
        weights = {wire.modality_from_pb(t.query_modality): _weights(t) for t in reply.trust}
        known = {modality: row for modality, row in weights.items() if modality}
        judge = Judge(known, reply.compares_modalities)
        self._judge, self._heard_at = (reply.fingerprint, judge), time.monotonic()
        return judge

    async def _look(self) -> None:
        self._heard_at = time.monotonic()  # and if not, the next look is as far away
        with suppress(MmeshError):  # what is known holds until there is something better
            self._take(await self._ask_model(Deadline.after(LOOK_S)))

    async def rerank(
        self,
        query: Content,
        instruction: str,
        candidates: Sequence[Content],
        deadline: Deadline,
        max_image_tokens: int = 0,
    ) -> Verdict:
        """Return what the judge says of `candidates` in time, and for these image tokens.

        Those that are large together are judged by several calls, one after the other; where one
        after the first fails, or another model answers it, or the time was too short for the one
        before, the rest has no score. A budget of image tokens is for all, so then there is one.
        """
        parts = [candidates] if max_image_tokens else list(_parts(candidates))
        verdict = await self._ask(query, instruction, parts[0], deadline, max_image_tokens)
        scores, seconds = list(verdict.scores), verdict.service_s
        with suppress(MmeshError):
            for part in parts[1:]:
                if None in scores:
                    break
                more = await self._ask(query, instruction, part, deadline, 0)
                if more.fingerprint != verdict.fingerprint:
                    break
                scores += more.scores
                seconds += more.service_s
        scores += [None] * (len(candidates) - len(scores))
        return replace(verdict, scores=scores, service_s=seconds)

    async def _ask(
        self,
        query: Content,
        instruction: str,
        candidates: Sequence[Content],
        deadline: Deadline,
        max_image_tokens: int,
    ) -> Verdict:
        def build() -> reranker_pb2.RerankRequest:
            return reranker_pb2.RerankRequest(
                query=wire.content_to_pb(query),
                instruction=instruction,
                candidates=[wire.content_to_pb(candidate) for candidate in candidates],
                budget=reranker_pb2.Budget(image_tokens=max_image_tokens),
            )

        request = await built(content_bytes([query, *candidates]), build)
        with self._watched(deadline):
            call = self._channel.stub.Rerank(request, **options_for(deadline))
            reply = await answer_of(call, "the reranker")
        if self._judge and reply.model_fingerprint != self._judge[0]:
            self._judge = None
        self._heard_at = time.monotonic()
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
            self._take(reply)
            state, detail = ServiceState.SERVING, f"{reply.name} {reply.template}".strip()
        return [ServiceStatus(ServiceRole.RERANKER, state, self._address, detail=detail)]

    @contextmanager
    def _watched(self, deadline: Deadline) -> Iterator[None]:
        """Let the circuit breaker know how a call ends.

        Raises:
            Unavailable: the circuit is open.
        """
        if opened := self._circuit.admit():
            raise Unavailable(f"the reranker was late just now: {opened.message}")
        given_s = deadline.remaining()
        try:
            yield
        except Unavailable:
            raise
        except MmeshError as error:
            if not self._circuit.note(error, given_s):
                self._circuit.close()  # it is there, and refuses this one
            raise
        except asyncio.CancelledError:
            if not deadline.remaining():  # else the caller went away
                self._circuit.note(DeadlineExceeded("it did not answer in time"), given_s)
            raise
        self._circuit.close()

    async def _ask_model(self, deadline: Deadline) -> reranker_pb2.GetModelResponse:
        request = reranker_pb2.GetModelRequest()
        return await answer_of(
            self._channel.stub.GetModel(request, **options_for(deadline)), "the reranker"
        )


def _parts(candidates: Sequence[Content]) -> Iterator[Sequence[Content]]:
    """Split candidates, in order, into parts of at most `CALL_BYTES`, or of one that is larger."""
    start = filled = 0
    for end, candidate in enumerate(candidates):
        if end > start and filled + candidate.size > CALL_BYTES:
            yield candidates[start:end]
            start, filled = end, 0
        filled += candidate.size
    yield candidates[start:]


def _weights(trust: reranker_pb2.Trust) -> dict[Modality, float]:
    return {
        Modality.TEXT: trust.text_weight,
        Modality.IMAGE: trust.image_weight,
        Modality.IMAGE_TEXT: trust.image_text_weight,
    }
