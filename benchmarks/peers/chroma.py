"""Chroma: a collection in SQLite with an HNSW graph in files beside it."""

from __future__ import annotations

from importlib.metadata import version

import chromadb
from chromadb.config import Settings

from peers.contract import EF_CONSTRUCTION, LIMIT, Batch, Condition, M, Peer, Searcher, Vector

NAME = "rows"


class Chroma(Peer):
    """A persistent collection; the graph grows while rows are added."""

    about = "embedded; HNSW, attributes in SQLite"
    durable = "SQLite commit with fsync"

    @classmethod
    def version(cls) -> str:
        """Return the version of the package."""
        return f"chromadb {version('chromadb')}"

    def open(self) -> None:
        """Get the collection, or create it."""
        self._client = chromadb.PersistentClient(
            path=str(self.folder), settings=Settings(anonymized_telemetry=False)
        )
        graph = {"space": "ip", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION}
        self._rows = self._client.get_or_create_collection(
            NAME, embedding_function=None, configuration={"hnsw": {**graph, "ef_search": 100}}
        )
        self._setting: int | None = None

    def add(self, batch: Batch) -> None:
        """Add rows."""
        attributes = [
            {"cat": cat, "sub": sub} for cat, sub in zip(batch.cats, batch.subs, strict=True)
        ]
        self._rows.add(
            ids=[*map(str, batch.ids)],
            embeddings=batch.vectors,
            metadatas=attributes,
            documents=list(batch.texts),
        )

    def finish(self) -> None:
        """Do nothing: adding builds the graph."""

    def prepare(self, setting: int) -> None:
        """Set `ef`, which belongs to the collection; it holds once the collection is reopened."""
        if setting != self._setting:
            self._rows.modify(configuration={"hnsw": {"ef_search": setting}})
            self.close()
            self.open()
            self._setting = setting

    def searcher(self, setting: int) -> Searcher:
        """Search with what `prepare` has set."""
        del setting

        def search(vector: Vector, condition: Condition | None) -> list[int]:
            where = {condition[0]: condition[1]} if condition else None
            found = self._rows.query(
                query_embeddings=[vector], n_results=LIMIT, where=where, include=[]
            )
            return [int(i) for i in found["ids"][0]]

        return search

    def close(self) -> None:
        """Let go of the files."""
        self._client.close()
