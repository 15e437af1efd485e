"""Migrations of the log's tables, run by Alembic from `services.index.log.databases.schema`."""
