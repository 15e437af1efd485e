"""The tables of the log, as the newest migration leaves them."""

from __future__ import annotations

import sqlalchemy as sa

from mmesh.content import Modality

metadata = sa.MetaData()

MODALITIES = tuple(Modality)
"""Modalities by the number that stands for them in the table; only ever add at the end."""
NUMBERS = {modality: number for number, modality in enumerate(MODALITIES)}

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Text that both engines sort by its bytes."""

collections = sa.Table(
    "collections",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", Text, nullable=False, unique=True),
    sa.Column("epoch", Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("purged", sa.BigInteger, nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("model_fingerprint", Text, nullable=False),
    sa.Column("attribute_types", Text, nullable=False),
    sa.Column("settings", Text, nullable=False),
    *(sa.Column(f"{m.value}_count", sa.BigInteger, nullable=False) for m in MODALITIES),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("stamp", Text, nullable=False, server_default=""),  # that of its newest commit
    sqlite_autoincrement=True,  # a key is never given again
)
commits = sa.Table(  # which writes a collection had: see `services.index.log.commits`
    "commits",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),  # of its last write
    sa.Column("stamp", Text, nullable=False),
    sqlite_with_rowid=False,
)
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("alias", Text, primary_key=True),
    sa.Column("key", sa.Integer, nullable=False, index=True),
)
dropped = sa.Table(  # deleted collections whose rows `purge` has yet to remove
    "dropped",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
)
identity = sa.Table(  # one row: what names this log, also after a restore
    "identity",
    metadata,
    sa.Column("id", Text, primary_key=True),
)
compatibility = sa.Table(  # one row: the oldest version whose processes may use these tables
    "compatibility",
    metadata,
    sa.Column("oldest", Text, primary_key=True),
)
candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", Text, primary_key=True),
    sa.Column("slot", sa.SmallInteger, nullable=False),
    sa.Column("modality", sa.SmallInteger, nullable=False),
    sa.Column("attributes", Text, nullable=False),
    sa.Column("parts", Text, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("deleted_s", sa.BigInteger),  # Unix time of the deletion; null while it lives
)
sa.Index("candidates_by_seq", candidates.c.key, candidates.c.seq, candidates.c.slot)
_is_deleted = candidates.c.deleted_s.is_not(None)
sa.Index(
    "candidates_deleted",
    candidates.c.key,
    candidates.c.deleted_s,
    sqlite_where=_is_deleted,
    postgresql_where=_is_deleted,
)
attributes = sa.Table(  # how many candidates have an attribute, by type; see `attributes.Uses`
    "attributes",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", Text, primary_key=True),
    sa.Column("type", Text, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request_id", Text, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("token", Text, nullable=False),
    sa.Column("time_s", sa.BigInteger, nullable=False, index=True),
    sa.Column("digest", Text, nullable=False, server_default=""),
    sa.Column("until_seq", sa.BigInteger),  # null once the request is done
    sqlite_with_rowid=False,
)
