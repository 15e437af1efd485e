"""Which releases may use the log beside this one, also when its tables are newer than theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the table; its one row is written by whatever migrates."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table("compatibility", sa.Column("oldest", text, primary_key=True))
