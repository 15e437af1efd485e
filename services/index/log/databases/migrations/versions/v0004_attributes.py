"""How many candidates have an attribute, by type: counted once here, kept by every write since."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TYPES = {bool: "boolean", int: "integer", float: "float", str: "string", list: "string_list"}
_SOME = 10_000


def upgrade() -> None:
    """Add the table and fill it; types that no candidate uses any more are forgotten."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    table = op.create_table(
        "attributes",
        sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", text, primary_key=True),
        sa.Column("type", text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    counts = _count(op.get_bind())
    rows = [
        {"key": key, "name": name, "type": kind, "count": count}
        for (key, name, kind), count in counts.items()
    ]
    for start in range(0, len(rows), _SOME):
        op.bulk_insert(table, rows[start : start + _SOME])
    _forget_unused(op.get_bind(), {(key, name) for key, name, _ in counts})


def _count(connection: sa.Connection) -> Counter[tuple[int, str, str]]:
    counts: Counter[tuple[int, str, str]] = Counter()
    query = sa.text(
        "SELECT key, attributes FROM candidates WHERE deleted_s IS NULL AND attributes <> ''"
    ).execution_options(yield_per=_SOME)
    for key, attributes in connection.execute(query):
        for name, kind in _types_in(attributes):
            counts[key, name, kind] += 1
    return counts


def _types_in(attributes: str) -> Iterator[tuple[str, str]]:
    """Yield names and types; a damaged row has none, so that it keeps no log from being opened."""
    try:
        values = json.loads(attributes)
    except ValueError:
        return
    for name, value in values.items() if isinstance(values, dict) else ():
        if type(value) in _TYPES:
            yield name, _TYPES[type(value)]


def _forget_unused(connection: sa.Connection, used: set[tuple[int, str]]) -> None:
    update = sa.text("UPDATE collections SET attribute_types = :types WHERE key = :key")
    for key, text in connection.execute(
        sa.text("SELECT key, attribute_types FROM collections")
    ).all():
        types = {name: kind for name, kind in json.loads(text).items() if (key, name) in used}
        connection.execute(update, {"key": key, "types": json.dumps(types)})
