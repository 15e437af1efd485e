"""LanceDB: a table of columns in files."""

from __future__ import annotations

from importlib.metadata import version

import lancedb
import pyarrow

from peers.contract import DIM, LIMIT, Batch, Condition, Peer, Searcher, Setting, Vector

NAME = "rows"
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.int64()),
        ("v", pyarrow.list_(pyarrow.float32(), DIM)),
        ("cat", pyarrow.int64()),
        ("sub", pyarrow.int64()),
        ("text", pyarrow.string()),
    ]
)
ROWS_OF_LIST = 256


class Lance(Peer):
    """A table with an IVF-PQ index, and bitmap indexes on both attributes."""

    about = "embedded; IVF-PQ with refinement, bitmap indexes"
    durable = "a new file for each batch, not synced"

    @classmethod
    def version(cls) -> str:
        """Return the version of the package."""
        return f"lancedb {version('lancedb')}"

    @classmethod
    def settings(cls, recall: float) -> list[Setting]:
        """Return lists that are probed, and how many times the limit is scored again exactly."""
        return [(16, 5), (32, 10), (48, 10), (64, 15), (96, 20), (128, 30), (192, 40), (256, 60)]

    def open(self) -> None:
        """Open the table, or create it."""
        database = lancedb.connect(str(self.folder))
        is_new = not any(self.folder.iterdir())
        self._table = (
            database.create_table(NAME, schema=SCHEMA) if is_new else database.open_table(NAME)
        )

    def add(self, batch: Batch) -> None:
        """Add a piece of the table."""
        vectors = pyarrow.array(batch.vectors.ravel())
        columns = [
            pyarrow.array(list(batch.ids)),
            pyarrow.FixedSizeListArray.from_arrays(vectors, DIM),
            *map(pyarrow.array, (batch.cats, batch.subs, batch.texts)),
        ]
        self._table.add(pyarrow.table(columns, schema=SCHEMA))

    def finish(self) -> None:
        """Make one piece of many, and build the indexes."""
        self._table.optimize()
        lists = max(1, self._table.count_rows() // ROWS_OF_LIST)
        self._table.create_index(
            metric="dot",
            vector_column_name="v",
            index_type="IVF_PQ",
            num_partitions=lists,
            num_sub_vectors=DIM // 8,
        )
        for name in ("cat", "sub"):
            self._table.create_scalar_index(name, index_type="BITMAP")
        self._table.optimize()

    def searcher(self, setting: tuple[int, int]) -> Searcher:
        """Search with probed lists and factor of refinement as the setting."""
        table, (probes, refined) = self._table, setting

        def search(vector: Vector, condition: Condition | None) -> list[int]:
            query = table.search(vector, vector_column_name="v").distance_type("dot")
            query = (
                query.limit(LIMIT)
                .select(["id", "_distance"])
                .nprobes(probes)
                .refine_factor(refined)
            )
            if condition:
                query = query.where(f"{condition[0]} = {condition[1]}", prefilter=True)
            found: list[int] = query.to_arrow().column("id").to_pylist()
            return found

        return search

    def close(self) -> None:
        """Do nothing: the files are whole at any time."""
