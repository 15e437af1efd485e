"""Rows by a collection's number; times of deletions; counts, settings and aliases of collections.

The first release wrote SQLite only, so only there is anything to carry over.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_INDEXES = ("candidates_by_seq", "candidates_by_modality", "requests_by_time")
_TABLES = ("requests", "candidates", "collections")
_MODALITIES = ("text", "image", "image_text")
_NOW_S = "CAST(strftime('%s', 'now') AS INTEGER)"


def upgrade() -> None:
    """Make the new tables, fill them from the old ones, and drop these."""
    for name in _INDEXES:
        op.drop_index(name)
    if op.get_context().dialect.name == "sqlite":
        for name in _TABLES:
            op.rename_table(name, f"old_{name}")
        _create_tables()
        for statement in (_CARRY_COLLECTIONS, _CARRY_CANDIDATES, _CARRY_REQUESTS):
            op.execute(statement)
        for name in _TABLES:
            op.drop_table(f"old_{name}")
    else:
        for name in _TABLES:
            op.drop_table(name)
        _create_tables()
        # Vectors do not compress; without this the server tries, and at a high price.
        op.execute("ALTER TABLE candidates ALTER COLUMN vector SET STORAGE EXTERNAL")
    _create_indexes()


def _create_tables() -> None:
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "collections",
        sa.Column("key", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", text, nullable=False, unique=True),
        sa.Column("epoch", text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("purged", sa.BigInteger, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("model_fingerprint", text, nullable=False),
        sa.Column("attribute_types", text, nullable=False),
        sa.Column("settings", text, nullable=False),
        *(sa.Column(f"{name}_count", sa.BigInteger, nullable=False) for name in _MODALITIES),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "aliases",
        sa.Column("alias", text, primary_key=True),
        sa.Column("key", sa.Integer, nullable=False),
    )
    op.create_table("dropped", sa.Column("key", sa.Integer, primary_key=True, autoincrement=False))
    op.create_table(
        "candidates",
        sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", text, primary_key=True),
        sa.Column("slot", sa.SmallInteger, nullable=False),
        sa.Column("modality", sa.SmallInteger, nullable=False),
        sa.Column("attributes", text, nullable=False),
        sa.Column("parts", text, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("deleted_s", sa.BigInteger),
    )
    op.create_table(
        "requests",
        sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("request_id", text, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("token", text, nullable=False),
        sa.Column("time_s", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def _create_indexes() -> None:
    """Make the indexes, which is quicker once the rows are there."""
    is_deleted = sa.column("deleted_s").is_not(None)
    op.create_index("ix_aliases_key", "aliases", ["key"])
    op.create_index("ix_requests_time_s", "requests", ["time_s"])
    op.create_index("candidates_by_seq", "candidates", ["key", "seq", "slot"])
    op.create_index(
        "candidates_deleted",
        "candidates",
        ["key", "deleted_s"],
        sqlite_where=is_deleted,
        postgresql_where=is_deleted,
    )


def _count(modality: str) -> str:
    return (
        "(SELECT count(*) FROM old_candidates AS c WHERE c.epoch = old_collections.epoch"
        f" AND NOT c.deleted AND c.modality = '{modality}')"
    )


_CARRY_COLLECTIONS = f"""
    INSERT INTO collections (
        name, epoch, seq, purged, dim, model_fingerprint, attribute_types, settings,
        text_count, image_count, image_text_count, create_time
    )
    SELECT name, epoch, seq, 0, dim, model_fingerprint, attribute_types, '{{}}',
        {", ".join(map(_count, _MODALITIES))}, create_time
    FROM old_collections ORDER BY create_time, name
"""
_CARRY_CANDIDATES = f"""
    INSERT INTO candidates (
        key, id, slot, modality, attributes, parts, vector, seq, deleted_s
    )
    SELECT collections.key, c.id, c.slot,
        CASE c.modality WHEN 'text' THEN 0 WHEN 'image' THEN 1 ELSE 2 END,
        c.attributes, c.parts, c.vector, c.seq, CASE WHEN c.deleted THEN {_NOW_S} END
    FROM old_candidates AS c JOIN collections USING (epoch) ORDER BY collections.key, c.seq
"""
# An answer was "epoch:seq" for a write and "count epoch:seq" for a deletion.
_CARRY_REQUESTS = """
    INSERT INTO requests (key, request_id, count, token, time_s)
    SELECT collections.key, r.request_id,
        CAST(substr(r.answer, 1, instr(r.answer, ' ')) AS INTEGER),
        substr(r.answer, instr(r.answer, ' ') + 1),
        CAST(strftime('%s', r.time) AS INTEGER)
    FROM old_requests AS r JOIN collections USING (epoch)
"""
