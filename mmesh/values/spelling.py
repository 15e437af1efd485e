"""The name that was meant: of those that there are, the one nearest in spelling."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from heapq import nlargest, nsmallest
from itertools import islice

_LONGEST, _KNOWN, _ALIKE, _CLOSE = 32, 1000, 100, 8
"""Characters of a name, names that are looked at, those of a similar length whose letters are
counted, and those of similar letters that are compared: anybody may have written them."""
_LEAST = 0.6


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like `name`, or an empty string; takes milliseconds."""
    return _nearest(name, tuple(islice(known, _KNOWN)))


@lru_cache(maxsize=64)
def _nearest(name: str, known: tuple[str, ...]) -> str:
    if len(name) > _LONGEST:
        return ""
    short = (one for one in known if len(one) <= _LONGEST)
    alike = nsmallest(_ALIKE, short, key=lambda one: (abs(len(one) - len(name)), one))
    matcher = SequenceMatcher(b=name.casefold())

    def by_letters(one: str) -> float:
        matcher.set_seq1(one.casefold())
        return matcher.quick_ratio()

    def by_order(one: str) -> float:
        matcher.set_seq1(one.casefold())
        return matcher.ratio()

    close = nlargest(_CLOSE, alike, key=by_letters)
    best = max(close, key=by_order, default="")
    return best if best and by_order(best) >= _LEAST else ""
