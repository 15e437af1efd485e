"""The composition root: the services behind the gateway, and what is done with them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from itertools import chain
from typing import Self

from mmesh.mesh_status import ServiceStatus
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
    """Channels to all services, and searches and writes on them; all run inside its context."""

    def __init__(
        self,
        encoders: Encoders,
        index: IndexBackend,
        reranker: RerankerBackend | None,
        settings: GatewaySettings,
    ) -> None:
        self.encoders, self.index, self.reranker = encoders, index, reranker
        self.catalog = Catalog(index)
        self.pipeline = Pipeline(encoders, index, self.catalog, reranker, settings)
        self.begin = partial(Draft, encoders, index, self.catalog)
        """Begins an upsert."""
        self.ingester = Ingester(
            self.begin,
            window=settings.ingest_window,
            most_bytes=settings.max_message_bytes,
            patience_s=settings.ingest_patience_s,
        )

    @classmethod
    def of(cls, settings: GatewaySettings) -> Self:
        """Return the mesh at the addresses of the settings."""
        reranker = RerankerBackend(settings.reranker) if settings.reranker else None
        return cls(Encoders(settings.encoder), IndexBackend(settings.index), reranker, settings)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for part in (self.reranker, self.index, self.encoders, self.catalog):
                if part is not None:
                    stack.push_async_callback(part.close)
            if self.reranker is not None:
                self.reranker.start()
            await self.encoders.start()
            await self.index.start()
            self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    async def status(self, deadline: Deadline) -> list[ServiceStatus]:
        """Return the state of every service."""
        patience = Deadline.after(min(STATUS_S, deadline.share(0.9).remaining()))
        parts = [part for part in (self.encoders, self.index, self.reranker) if part is not None]
        return list(chain(*await asyncio.gather(*(part.status(patience) for part in parts))))
