"""A random stamp for each commit of a collection, by which histories are told apart.

What was committed before has no stamps; the state that the migration finds gets one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_STAMP = {
    "sqlite": "lower(hex(randomblob(6)))",
    "postgresql": "substr(md5(random()::text || clock_timestamp()::text || epoch), 1, 12)",
}


def upgrade() -> None:
    """Add the column and the table, and give each collection that has writes its first stamp."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.add_column("collections", sa.Column("stamp", text, nullable=False, server_default=""))
    op.create_table(
        "commits",
        sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stamp", text, nullable=False),
        sqlite_with_rowid=False,
    )
    stamp = _STAMP[op.get_context().dialect.name]
    op.execute(f"UPDATE collections SET stamp = {stamp} WHERE seq > 0")
    op.execute(
        "INSERT INTO commits (key, seq, stamp) SELECT key, seq, stamp FROM collections "
        "WHERE seq > 0"
    )
