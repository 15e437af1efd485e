"""Client: the same calls as AsyncClient, blocking."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from mmesh.aio import DEFAULT_TIMEOUT_S, AsyncClient, Query
from mmesh.candidates import Candidate, Embedded, IngestReport, Page
from mmesh.collections import Collection, CollectionSettings, SettingsChange
from mmesh.errors import MmeshError
from mmesh.filters import Filter
from mmesh.mesh_status import MeshStatus
from mmesh.search import Search, SearchResult
from mmesh.vectors import DataType

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from mmesh.ingest import Progress

Answer = TypeVar("Answer")


class Client:
    """A blocking client of one mesh; a context manager, safe to use from several threads.

    See `AsyncClient` for what the calls do; it is driven by an event loop on a thread of its own.

    Example:
        with Client() as client:
            for hit in client.search("photos", "a cat on a sofa", limit=5).hits:
                print(hit.rank, hit.id, hit.score)
    """

    def __init__(self, address: str | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mmesh", daemon=True)
        self._thread.start()
        self._client = self._wait(_open(address))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel and end the thread."""
        if self._loop.is_closed():
            return
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def search(
        self,
        collection: str,
        query: Query,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **options: Any,
    ) -> SearchResult:
        """Search with text, a picture's bytes, or a list of both; options are `Search`'s fields."""
        return self._wait(self._client.search(collection, query, timeout=timeout, **options))

    def search_batch(
        self, searches: Sequence[Search], *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> list[SearchResult | MmeshError]:
        """Return an answer or an error for each of up to 256 searches, in order."""
        return self._wait(self._client.search_batch(searches, timeout=timeout))

    def upsert_candidates(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        *,
        vectors: ArrayLike | None = None,
        model_fingerprint: str = "",
        data_type: DataType = DataType.FLOAT32,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> str:
        """Encode and store up to 256 candidates; see `AsyncClient.upsert_candidates`."""
        return self._wait(
            self._client.upsert_candidates(
                collection,
                candidates,
                vectors=vectors,
                model_fingerprint=model_fingerprint,
                data_type=data_type,
                request_id=request_id,
                timeout=timeout,
            )
        )

    def delete_candidates(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> tuple[int, str]:
        """Delete candidates; return how many existed, and the token of the write."""
        return self._wait(
            self._client.delete_candidates(collection, ids, request_id=request_id, timeout=timeout)
        )

    def delete_candidates_by_filter(
        self,
        collection: str,
        filter: Filter,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> tuple[int, str]:
        """Delete the candidates for which a filter holds; return how many, and the token."""
        return self._wait(
            self._client.delete_candidates_by_filter(
                collection, filter, request_id=request_id, timeout=timeout
            )
        )

    def batch_get_candidates(
        self, collection: str, ids: Sequence[str], *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> list[Candidate]:
        """Return those of up to 1000 ids that exist, with content, in the order of the ids."""
        return self._wait(self._client.batch_get_candidates(collection, ids, timeout=timeout))

    def list_candidates(
        self,
        collection: str,
        *,
        page_size: int = 0,
        page_token: str = "",
        include_images: bool = False,
        include_vectors: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Page:
        """Return a page of candidates by id, without the bytes of pictures unless asked for."""
        return self._wait(
            self._client.list_candidates(
                collection,
                page_size=page_size,
                page_token=page_token,
                include_images=include_images,
                include_vectors=include_vectors,
                timeout=timeout,
            )
        )

    def ingest(
        self,
        collection: str,
        candidates: Iterable[Candidate | Embedded],
        *,
        model_fingerprint: str = "",
        data_type: DataType = DataType.FLOAT32,
        batch_size: int = 64,
        patience_s: float = 60.0,
        fill: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> IngestReport:
        """Ingest any number of candidates; see `AsyncClient.ingest`."""
        return self._wait(
            self._client.ingest(
                collection,
                candidates,
                model_fingerprint=model_fingerprint,
                data_type=data_type,
                batch_size=batch_size,
                patience_s=patience_s,
                fill=fill,
                on_progress=on_progress,
            )
        )

    def create_collection(
        self,
        name: str,
        settings: CollectionSettings | None = None,
        *,
        model: str = "",
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Collection:
        """Create a collection, or return it if it exists; see `AsyncClient.create_collection`."""
        return self._wait(
            self._client.create_collection(
                name, settings, model=model, request_id=request_id, timeout=timeout
            )
        )

    def update_collection(
        self,
        name: str,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **change: Unpack[SettingsChange],
    ) -> Collection:
        """Change the settings that are given, such as `max_limit=9`; return the collection."""
        return self._wait(
            self._client.update_collection(name, request_id=request_id, timeout=timeout, **change)
        )

    def get_collection(self, name: str, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> Collection:
        """Return one collection."""
        return self._wait(self._client.get_collection(name, timeout=timeout))

    def list_collections(self, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> list[Collection]:
        """Return all collections by name."""
        return self._wait(self._client.list_collections(timeout=timeout))

    def delete_collection(
        self, name: str, *, request_id: str = "", timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> int:
        """Delete a collection and its aliases; return how many candidates it had."""
        deleting = self._client.delete_collection(name, request_id=request_id, timeout=timeout)
        return self._wait(deleting)

    def set_alias(
        self,
        alias: str,
        collection: str,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> str:
        """Let an alias name a collection at once; return the name of the one before, or ""."""
        return self._wait(
            self._client.set_alias(alias, collection, request_id=request_id, timeout=timeout)
        )

    def delete_alias(
        self, alias: str, *, request_id: str = "", timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> None:
        """Delete an alias; its collection stays."""
        self._wait(self._client.delete_alias(alias, request_id=request_id, timeout=timeout))

    def get_status(self, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> MeshStatus:
        """Return the state of every process of the mesh."""
        return self._wait(self._client.get_status(timeout=timeout))


async def _open(address: str | None) -> AsyncClient:
    return AsyncClient(address)
