"""A random id of the log, by which a store of pictures knows to which log it belongs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_ID = {
    "sqlite": "lower(hex(randomblob(16)))",
    "postgresql": "replace(gen_random_uuid()::text, '-', '')",
}


def upgrade() -> None:
    """Add the table and its one row."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table("identity", sa.Column("id", text, primary_key=True))
    op.execute(f"INSERT INTO identity (id) VALUES ({_ID[op.get_context().dialect.name]})")
