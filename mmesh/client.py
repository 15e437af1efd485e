"""Client: the same calls as AsyncClient, blocking."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from mmesh.aio import DEFAULT_TIMEOUT_S, AsyncClient, Query
from mmesh.errors import MmeshError
from mmesh.search import Search, SearchResult
from mmesh.threads.loop_thread import LoopThread
from mmesh.threads.source_thread import off_the_loop
from mmesh.vectors import DataType
from mmesh.wire.transport import check_not_forked, closed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from mmesh.candidates import Candidate, Embedded, Page, WriteReport
    from mmesh.collections import Collection, CollectionSettings, SettingsChange
    from mmesh.filters import Filter
    from mmesh.ingest import Progress
    from mmesh.mesh_status import MeshStatus

Answer = TypeVar("Answer")


class Client:
    """A blocking client of one mesh; a context manager, safe to use from several threads.

    See `AsyncClient` for what the calls do, and for forks; it is driven by an event loop on a
    thread of its own, which the first call starts.

    Example:
        with Client() as client:
            for hit in client.search("photos", "a cat on a sofa", limit=5).hits:
                print(hit.rank, hit.id, hit.score)
    """

    def __init__(self, address: str | None = None) -> None:
        self._client = AsyncClient(address)
        self._thread: LoopThread | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel and end the thread; later calls are refused.

        Calls that other threads wait for end with `FailedPrecondition`.
        """
        with _starting.lock:
            thread, self._thread, self._is_closed = self._thread, None, True
        if thread is not None and thread.is_here():
            thread.close()

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            thread = self._running_thread()
        except MmeshError:
            work.close()
            raise
        return thread.run(work)

    def _running_thread(self) -> LoopThread:
        check_not_forked()
        with _starting.lock:
            if self._is_closed:
                raise closed()
            if self._thread is None or not self._thread.is_here():
                thread = LoopThread(self._client.close)
                if self._is_closed:  # by a signal handler, meanwhile
                    thread.close()
                    raise closed()
                self._thread = thread
            return self._thread

    def search(
        self,
        collection: str,
        query: Query,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **options: Any,
    ) -> SearchResult:
        """Search with text, a picture's bytes or path, or a list of these.

        Options are `Search`'s fields; see `AsyncClient.search`.
        """
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
    ) -> WriteReport:
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
        self,
        collection: str,
        ids: Sequence[str],
        *,
        include_images: bool = True,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> list[Candidate]:
        """Return those of up to 1000 ids that exist, with content, in the order of the ids."""
        return self._wait(
            self._client.batch_get_candidates(
                collection, ids, include_images=include_images, timeout=timeout
            )
        )

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
        notice_ids: int = 20,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        """Ingest any number of candidates; see `AsyncClient.ingest`.

        They are iterated on a thread of their own, so that what they wait for keeps no other call
        of the client waiting; `on_progress` is called on the client's thread, and does.
        """
        with off_the_loop(candidates) as source:
            return self._wait(
                self._client.ingest(
                    collection,
                    source,
                    model_fingerprint=model_fingerprint,
                    data_type=data_type,
                    batch_size=batch_size,
                    patience_s=patience_s,
                    fill=fill,
                    notice_ids=notice_ids,
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

    def get_collection(
        self,
        name: str,
        *,
        include_attributes: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Collection:
        """Return one collection, with its attributes if they are asked for."""
        return self._wait(
            self._client.get_collection(
                name, include_attributes=include_attributes, timeout=timeout
            )
        )

    def list_collections(self, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> list[Collection]:
        """Return all collections by name."""
        return self._wait(self._client.list_collections(timeout=timeout))

    def copy_collection(
        self,
        source: str,
        name: str,
        *,
        request_id: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> Collection:
        """Copy what a collection holds now into a new read-only one: a snapshot; return it.

        It appears when it is complete, and writes to the source go on meanwhile. Give it time: it
        copies some 10,000 candidates a second.
        """
        return self._wait(
            self._client.copy_collection(source, name, request_id=request_id, timeout=timeout)
        )

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


class _Starting:
    """The lock around starts of threads; a new one in a forked process, where it may be held.

    It is re-entrant: a signal handler may close a client while its thread starts.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.RLock()


_starting = _Starting()
