"""The services behind the gateway, and what is done with them besides searching."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Self

from mmesh.candidates import ServiceStatus
from mmesh.errors import MmeshError
from mmesh.serving.deadline import Deadline
from services.gateway.catalog import Catalog
from services.gateway.config import GatewaySettings
from services.gateway.encoders.router import Encoders
from services.gateway.reranker_backend import RerankerBackend
from services.gateway.search.pipeline import Pipeline
from services.gateway.shards.index_backend import IndexBackend
from services.gateway.writes.draft import Draft
from services.gateway.writes.ingest import Ingester

STATUS_S = 2.0


class Mesh:
    """Channels to all services, with the pipeline and the ingester on them."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.encoders = Encoders(settings.encoder)
        self.index = IndexBackend(settings.index)
        self.reranker = RerankerBackend(settings.reranker) if settings.reranker else None
        self.catalog = Catalog(self.index)
        self.pipeline = Pipeline(self.encoders, self.index, self.catalog, self.reranker, settings)
        self.begin = partial(Draft, self.encoders, self.index, self.catalog)
        """Begins an upsert."""
        self.ingester = Ingester(
            self.begin, window=settings.ingest_window, patience_s=settings.ingest_patience_s
        )

    async def __aenter__(self) -> Self:
        await self.encoders.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for part in (self.pipeline, self.catalog, self.encoders, self.index, self.reranker):
            if part is not None:
                await part.close()

    async def status(self, deadline: Deadline) -> list[ServiceStatus]:
        """Return the state of every service."""
        patience = Deadline.after(min(STATUS_S, deadline.share(0.9).remaining()))
        asked = {"reranker": self.reranker.describe(patience)} if self.reranker else {}
        encoders, processes, answers = await asyncio.gather(
            self.encoders.describe(patience),
            self.index.describe(patience),
            asyncio.gather(*asked.values(), return_exceptions=True),
        )
        others = [_status(name, one) for name, one in zip(asked, answers, strict=True)]
        return [*(_status(name, one) for name, one in encoders.items()), *processes, *others]


def _status(name: str, answer: str | BaseException) -> ServiceStatus:
    if isinstance(answer, str):
        return ServiceStatus(name, serving=True, detail=answer)
    if isinstance(answer, MmeshError):
        return ServiceStatus(name, serving=False, detail=answer.message)
    raise answer
