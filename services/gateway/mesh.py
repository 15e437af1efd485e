"""The services behind the gateway, and what is done with them besides searching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Self

from mmesh.candidates import Candidate, ServiceStatus
from mmesh.content import Role
from mmesh.errors import InvalidField, MmeshError
from mmesh.serving.deadline import Deadline
from services.gateway.backends import EncoderBackend, IndexBackend, RerankerBackend
from services.gateway.config import GatewaySettings
from services.gateway.ingest import Ingester
from services.gateway.pipeline import Pipeline

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
        self, collection: str, candidates: Sequence[Candidate], request_id: str, deadline: Deadline
    ) -> str:
        """Encode and store candidates, all or none; return the token."""
        inputs = [(candidate.content, "") for candidate in candidates]
        encoded = await self.encoder.encode(inputs, Role.CANDIDATE, deadline, skip_problems=True)
        for number, error in sorted(encoded.problems.items()):
            raise error.under(f"candidates[{number}]") if isinstance(error, InvalidField) else error
        return await self.index.upsert(
            collection, candidates, encoded.vectors, encoded.fingerprint, request_id, deadline
        )

    async def status(self, deadline: Deadline) -> list[ServiceStatus]:
        """Return the state of every service."""
        patience = Deadline.after(min(STATUS_S, deadline.share(0.9).remaining()))
        asked: dict[str, Awaitable[str]] = {"encoder": self._describe_encoder(patience)}
        for shard in range(self.index.shard_count):
            asked[f"index-{shard}"] = self.index.describe_shard(shard, patience)
        if self.reranker is not None:
            asked["reranker"] = self.reranker.describe(patience)
        answers = await asyncio.gather(*asked.values(), return_exceptions=True)
        return [_status(name, answer) for name, answer in zip(asked, answers, strict=True)]

    async def _describe_encoder(self, deadline: Deadline) -> str:
        model = await self.encoder.ask_model(deadline)
        return f"{model.name} ({model.dim} wide)"


def _status(name: str, answer: str | BaseException) -> ServiceStatus:
    if isinstance(answer, str):
        return ServiceStatus(name, serving=True, detail=answer)
    if isinstance(answer, MmeshError):
        return ServiceStatus(name, serving=False, detail=answer.message)
    raise answer
