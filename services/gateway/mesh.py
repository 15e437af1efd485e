"""The services behind the gateway, and what is done with them besides searching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Self

from mmesh.candidates import Candidate, ServiceStatus
from mmesh.content import Role
from mmesh.errors import InvalidField, MmeshError
from mmesh.serving.deadline import Deadline
from services.gateway.config import GatewaySettings
from services.gateway.encoder_backend import EncoderBackend
from services.gateway.index_backend import IndexBackend
from services.gateway.ingest import Given, Ingester
from services.gateway.pipeline import Pipeline
from services.gateway.reranker_backend import RerankerBackend

STATUS_S = 2.0


class Mesh:
    """Channels to all services, with the pipeline and the ingester on them."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.encoder = EncoderBackend(settings.encoder)
        self.index = IndexBackend(settings.index)
        self.reranker = RerankerBackend(settings.reranker) if settings.reranker else None
        self.pipeline = Pipeline(self.encoder, self.index, self.reranker, settings)
        self.ingester = Ingester(
            self.encoder,
            self.index,
            window=settings.ingest_window,
            patience_s=settings.ingest_patience_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pipeline.close()
        for backend in (self.encoder, self.index, self.reranker):
            if backend is not None:
                await backend.close()

    async def upsert(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        given: Given | None,
        request_id: str,
        deadline: Deadline,
    ) -> str:
        """Store candidates, encoded first unless vectors are given, all or none; return the token.

        Raises:
            MmeshError: what is wrong with one of them, the number of which is in its field.
        """
        vectors = given or await self._encode(candidates, deadline)
        return await self.index.upsert(
            collection, candidates, vectors.rows, vectors.fingerprint, request_id, deadline
        )

    async def _encode(self, candidates: Sequence[Candidate], deadline: Deadline) -> Given:
        inputs = [(candidate.content, "") for candidate in candidates]
        encoded = await self.encoder.encode(inputs, Role.CANDIDATE, deadline, skip_problems=True)
        for number, error in sorted(encoded.problems.items()):
            raise error.under(f"candidates[{number}]") if isinstance(error, InvalidField) else error
        return Given(encoded.vectors, encoded.fingerprint)

    async def status(self, deadline: Deadline) -> list[ServiceStatus]:
        """Return the state of every service."""
        patience = Deadline.after(min(STATUS_S, deadline.share(0.9).remaining()))
        asked: dict[str, Awaitable[str]] = {"encoder": self._describe_encoder(patience)}
        if self.reranker is not None:
            asked["reranker"] = self.reranker.describe(patience)
        processes, answers = await asyncio.gather(
            self.index.describe(patience),
            asyncio.gather(*asked.values(), return_exceptions=True),
        )
        encoder, *others = [_status(name, one) for name, one in zip(asked, answers, strict=True)]
        return [encoder, *processes, *others]

    async def _describe_encoder(self, deadline: Deadline) -> str:
        model = await self.encoder.ask_model(deadline)
        return f"{model.name} ({model.dim} wide)"


def _status(name: str, answer: str | BaseException) -> ServiceStatus:
    if isinstance(answer, str):
        return ServiceStatus(name, serving=True, detail=answer)
    if isinstance(answer, MmeshError):
        return ServiceStatus(name, serving=False, detail=answer.message)
    raise answer
