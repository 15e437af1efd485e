"""The table of answered requests; every function works inside a transaction of its caller."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from services.index.log.answers import Answer, check_request_id, check_same
from services.index.log.databases.database import Database
from services.index.log.tables import requests

NAMES = 0
"""Stands in the place of a collection's key for requests that change names of collections."""
_ANSWER = (requests.c.token, requests.c.count, requests.c.digest, requests.c.until_seq)
_ONE = sa.select(*_ANSWER).where(
    requests.c.key == sa.bindparam("key"), requests.c.request_id == sa.bindparam("request_id")
)
_CHANGE = requests.update().where(
    requests.c.key == sa.bindparam("of_key"), requests.c.request_id == sa.bindparam("of_id")
)


class Requests:
    """Reads and writes the answers to the requests of collections, by key and request id."""

    def __init__(self, database: Database) -> None:
        self._many = database.many
        self._several = sa.select(requests.c.request_id, *_ANSWER).where(
            requests.c.key == sa.bindparam("key"), database.is_one_of(requests.c.request_id, "ids")
        )

    def read(self, connection: sa.Connection, key: int, ids: Iterable[str]) -> dict[str, Answer]:
        """Return the answers that there are, by request id."""
        ids = [request_id for request_id in ids if request_id and "\0" not in request_id]
        if not ids:
            return {}
        found = connection.execute(self._several, {"key": key, "ids": self._many(ids)})
        return {request_id: Answer(*answer) for request_id, *answer in found}

    def save(
        self,
        connection: sa.Connection,
        key: int,
        answers: Mapping[str, Answer],
        known: Mapping[str, Answer],
    ) -> None:
        """Write the answers that are new, or have changed since they were known."""
        added = [_values(key, i, answer) for i, answer in answers.items() if i not in known]
        if added:
            connection.execute(requests.insert(), added)
        for request_id, before in known.items():
            if (answer := answers[request_id]) != before:
                place = {"of_key": key, "of_id": request_id}
                connection.execute(_CHANGE, place | _values(key, request_id, answer))


class Once:
    """A request that changes names, within its transaction, which no other one runs beside.

    Raises:
        InvalidField: the request id cannot be remembered.
        RequestIdReused: it was that of another request.
    """

    def __init__(self, connection: sa.Connection, request_id: str, digest: str) -> None:
        check_request_id(request_id)
        self.connection = connection
        self._request_id, self._digest = request_id, digest
        self.answer = find(connection, NAMES, request_id)
        """What was answered before; None the first time, and for requests without an id."""
        if self.answer is not None:
            check_same(request_id, self.answer, digest)

    def remember(self, text: str, count: int = 0) -> None:
        """Take note of the answer, for the next time."""
        if self._request_id:
            values = _values(NAMES, self._request_id, Answer(text, count, self._digest))
            self.connection.execute(requests.insert(), values)


def find(connection: sa.Connection, key: int, request_id: str) -> Answer | None:
    """Return the answer to one request; None without a request id."""
    if not request_id:
        return None
    found = connection.execute(_ONE, {"key": key, "request_id": request_id}).one_or_none()
    return Answer(*found) if found else None


def _values(key: int, request_id: str, answer: Answer) -> dict[str, Any]:
    return {
        "key": key,
        "request_id": request_id,
        "token": answer.text,
        "count": answer.count,
        "digest": answer.digest,
        "until_seq": answer.until_seq,
        "time_s": int(time.time()),
    }
