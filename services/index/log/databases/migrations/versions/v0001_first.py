"""The tables of the first release: rows by epoch and id, modalities by name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "collections",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("epoch", sa.String, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("model_fingerprint", sa.String, nullable=False),
        sa.Column("attribute_types", sa.String, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "candidates",
        sa.Column("epoch", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("modality", sa.String, nullable=False),
        sa.Column("attributes", sa.String, nullable=False),
        sa.Column("parts", sa.String, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    op.create_index("candidates_by_seq", "candidates", ["epoch", "seq"])
    op.create_index("candidates_by_modality", "candidates", ["epoch", "deleted", "modality"])
    op.create_table(
        "requests",
        sa.Column("epoch", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("answer", sa.String, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("requests_by_time", "requests", ["time"])
