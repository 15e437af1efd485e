"""Migrations of the log's tables, run by Alembic from `services.index.log.schema`."""
