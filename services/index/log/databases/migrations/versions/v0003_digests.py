"""What a request asked for, beside its answer, and how far a deletion in steps has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; the content of requests that were answered before is not known."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.add_column("requests", sa.Column("digest", text, nullable=False, server_default=""))
    op.add_column("requests", sa.Column("until_seq", sa.BigInteger))
