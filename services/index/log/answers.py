"""Idempotency keys: a request id is bound to the content of its request and to the first answer.

Whoever repeats a request, because its answer was lost, gets that answer again (AIP-155); whoever
sends something else under the same id is told so instead of being given an answer to neither.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from mmesh.errors import InvalidField, RequestIdReused


@dataclass(frozen=True, slots=True)
class Answer:
    """What is remembered of a request: its answer, and what tells its content from another one."""

    text: str
    """Token of a write; name or epoch of a collection where names were changed."""
    count: int
    digest: str
    """Digest of its content; empty, which fits any, where an earlier release wrote it."""
    until_seq: int | None = None
    """Of a deletion in steps that is not over: newer writes than this are no business of it."""

    @property
    def is_final(self) -> bool:
        """Whether the request was done; else the same request goes on with it."""
        return self.until_seq is None


def digest_of(kind: str, *content: object) -> str:
    """Return a digest (128 bits of BLAKE2b) of JSON values: of what a request asks for."""
    text = json.dumps([kind, *content])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def check_request_id(request_id: str) -> None:
    """Raise `InvalidField` for what cannot be remembered."""
    if "\0" in request_id:
        raise InvalidField("request_id", "holds a NUL character; remove it")


def check_same(request_id: str, known: Answer, digest: str) -> None:
    """Raise `RequestIdReused` unless the content is that of the request which was answered."""
    if known.digest not in ("", digest):
        raise RequestIdReused(
            f"request id {request_id[:80]!r} was used for another request; use a new one for each",
            {"request_id": request_id[:80]},
        )
