"""milvus-lite: Milvus in the process of its client, behind gRPC all the same."""

from __future__ import annotations

from importlib.metadata import version

from pymilvus import DataType, MilvusClient

from peers.contract import (
    DIM,
    EF_CONSTRUCTION,
    LIMIT,
    Batch,
    Condition,
    M,
    Peer,
    Searcher,
    Vector,
)

NAME = "rows"


class MilvusLite(Peer):
    """A collection with an HNSW index, and inverted indexes on both attributes."""

    about = "embedded, in-process gRPC; HNSW, inverted indexes"
    durable = "write-ahead log, not synced"

    @classmethod
    def version(cls) -> str:
        """Return the versions of engine and client."""
        return f"milvus-lite {version('milvus-lite')}, pymilvus {version('pymilvus')}"

    def open(self) -> None:
        """Load the collection, or create it."""
        self._client = MilvusClient(str(self.folder / "milvus.db"))
        if self._client.has_collection(NAME):
            self._client.load_collection(NAME)
            return
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("v", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("cat", DataType.INT64)
        schema.add_field("sub", DataType.INT64)
        schema.add_field("text", DataType.VARCHAR, max_length=2048)
        self._client.create_collection(NAME, schema=schema)

    def add(self, batch: Batch) -> None:
        """Insert rows."""
        columns = (batch.ids, batch.vectors, batch.cats, batch.subs, batch.texts)
        names = ("id", "v", "cat", "sub", "text")
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        self._client.insert(NAME, rows)

    def finish(self) -> None:
        """Flush, build the indexes and load them."""
        self._client.flush(NAME)
        indexes = self._client.prepare_index_params()
        graph = {"M": M, "efConstruction": EF_CONSTRUCTION}
        indexes.add_index("v", index_type="HNSW", metric_type="IP", params=graph)
        for name in ("cat", "sub"):
            indexes.add_index(name, index_type="INVERTED")
        self._client.create_index(NAME, indexes)
        self._client.load_collection(NAME)

    def searcher(self, setting: int) -> Searcher:
        """Search with `ef` as the setting."""
        client, params = self._client, {"metric_type": "IP", "params": {"ef": setting}}

        def search(vector: Vector, condition: Condition | None) -> list[int]:
            where = f"{condition[0]} == {condition[1]}" if condition else ""
            found = client.search(
                NAME, data=[vector], limit=LIMIT, filter=where, search_params=params
            )
            return [hit["id"] for hit in found[0]]

        return search

    def close(self) -> None:
        """Close the client, and with it the engine."""
        self._client.close()
