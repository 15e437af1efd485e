"""Tokens of writes: a sequence number, and the history in which it is a place.

A sequence number alone says nothing: a collection that was deleted and made anew counts from 0
again, and one whose log was restored to an earlier moment counts the same numbers for other writes.
So tokens compare only within one history: the epoch names the collection, and the stamp the commit
that made the write, which no other history of the collection has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mmesh.errors import InvalidField

_FORM = re.compile(r"(?P<epoch>[^:]*?)(?:\.(?P<stamp>[0-9a-f]{12}))?:(?P<seq>[0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Token:
    """The state of a collection after a write; callers see it as opaque text."""

    epoch: str
    """Names the collection, from when it was created."""
    seq: int
    """Writes of that history; 0 before the first."""
    stamp: str = ""
    """Of the commit that made the write; empty before the first, and in tokens of old releases."""

    @classmethod
    def parse(cls, text: str, path: str = "token") -> Token:
        """Return the token that `text` stands for.

        Raises:
            InvalidField: it stands for none; `path` names where it was.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise InvalidField(path, f"is {text[:80]!r}, which is no token of this mesh")
        return cls(found["epoch"], int(found["seq"]), found["stamp"] or "")

    def __str__(self) -> str:
        stamp = f".{self.stamp}" if self.stamp else ""
        return f"{self.epoch}{stamp}:{self.seq}"

    def shares_history(self, other: Token) -> bool:
        """Whether the two are of the same collection, so that their numbers compare."""
        return self.epoch == other.epoch


def newest(tokens: Iterable[Token]) -> Token:
    """Return the token of the last write among those of one history.

    Raises:
        ValueError: they are of several histories, or there is none.
    """
    found = list(tokens)
    if len({token.epoch for token in found}) != 1:
        raise ValueError(f"{len(found)} tokens are not of one history")
    return max(found, key=lambda token: token.seq)
