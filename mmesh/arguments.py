"""Arguments of the SDK's calls: what callers have, as the types that messages are made of.

Scalars of numpy, lists, paths of pictures and names of enums are taken. Whatever else is not of the
right type is an `InvalidField` that names the field, not an error of protobuf's.
"""

from __future__ import annotations

import enum
import inspect
import math
import operator
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import cache, wraps
from numbers import Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args

from mmesh.content import Attributes, Content, Image, Modality, as_part
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.search import Consistency, MergePolicy, Rerank, Search
from mmesh.values.ids import name_of_character
from mmesh.vectors import DataType

if TYPE_CHECKING:
    from mmesh.candidates import Candidate
    from mmesh.collections import CollectionSettings
    from mmesh.filters import Filter

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
Client = TypeVar("Client")
LONGEST_S = 365 * 86_400.0
"""Seconds beyond which a time limit is none."""
Taker = Callable[[Any, str], Any]
"""Returns a value of the right type, or raises `InvalidField` with the path that it is given."""


def checked(client: type[Client]) -> type[Client]:
    """Let every call of a client have its arguments in the right types; see `TAKERS`."""
    for name, call in list(vars(client).items()):
        if inspect.iscoroutinefunction(call) and not name.startswith("_"):
            setattr(client, name, _checked(call))
    return client


def _checked(
    call: Callable[Arguments, Awaitable[Answer]],
) -> Callable[Arguments, Awaitable[Answer]]:
    signature = cache(lambda: inspect.signature(call))  # when it is called: there are many calls

    @wraps(call)
    async def with_types(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        given = signature().bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if name in TAKERS:
                given.arguments[name] = TAKERS[name](value, name)
        return await call(*given.args, **given.kwargs)

    return with_types


def string(value: Any, path: str) -> str:
    """Take a str, whatever is in it."""
    if not isinstance(value, str):
        raise _wrong(value, path, "a str")
    return str(value)


def text(value: Any, path: str) -> str:
    """Take a str of valid Unicode: a message holds no lone surrogates."""
    taken = string(value, path)
    try:
        taken.encode()
    except UnicodeEncodeError as error:
        problem = f"holds {name_of_character(taken[error.start])} as character {error.start + 1}"
        raise InvalidField(path, problem) from None
    return taken


def whole(value: Any, path: str) -> int:
    """Take an int, also one of numpy's."""
    try:
        return operator.index(value)
    except TypeError:
        raise _wrong(value, path, "an int") from None


def small(value: Any, path: str) -> int:
    """Take an int of 32 bits."""
    taken = whole(value, path)
    if taken.bit_length() > 31:
        raise InvalidField(path, f"is {taken}, which does not fit into 32 bits")
    return taken


def number(value: Any, path: str) -> float:
    """Take any real number."""
    if not isinstance(value, Real):
        raise _wrong(value, path, "a number")
    try:
        return float(value)
    except OverflowError:
        raise InvalidField(path, "is too large a number") from None


def _batch_size(value: Any, path: str) -> int:
    size = whole(value, path)
    if size < 1:
        raise InvalidField(path, f"is {size}; at least 1 is due")
    return size


def _patience(value: Any, path: str) -> float:
    patience = number(value, path)
    if not patience >= 0:  # nor NaN, which no time reaches
        raise InvalidField(path, f"is {patience}; 0 seconds or more are due")
    return patience


def _finite(value: Any, path: str) -> float:
    taken = number(value, path)
    if not math.isfinite(taken):
        raise InvalidField(path, f"is {taken}; a finite number is due")
    return taken


def seconds(value: Any, path: str) -> float | None:
    """Take a number of seconds, or None for no limit; more than a year is none.

    gRPC would take some 300 years for a moment that is over.
    """
    if value is None:
        return None
    limit = number(value, path)
    if math.isnan(limit):
        raise InvalidField(path, "is not a number; None is for no limit")
    return limit if limit < LONGEST_S else None


def flag(value: Any, path: str) -> bool:
    """Take a bool, also numpy's."""
    value = _plain(value)
    if not isinstance(value, bool):
        raise _wrong(value, path, "True or False")
    return value


def texts(value: Any, path: str) -> list[str]:
    """Take any iterable of str but a str, whose characters are hardly meant."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise _wrong(value, path, "a list of str")
    return [text(one, f"{path}[{number}]") for number, one in enumerate(value)]


def content(value: Any, path: str) -> Content:
    """Take content, a part (text, picture, bytes or path of a picture), or several of them."""
    if isinstance(value, Content):
        value, is_right = value.parts, _are_parts(value.parts)
        if is_right:
            return Content(value)
    if isinstance(value, list | tuple):
        parts = tuple(as_part(p, f"{path}.parts[{n}]") for n, p in enumerate(value))
        return Content(parts)
    return Content((as_part(value, path),))


def candidate(value: Any, path: str) -> Candidate:
    """Take a candidate, whose fields may be what calls take, too."""
    from mmesh.candidates import Candidate

    if not isinstance(value, Candidate):
        raise _wrong(value, path, "a Candidate")
    return Candidate(
        string(value.id, f"{path}.id"),  # which characters it may hold is checked later
        content(value.content, f"{path}.content"),
        attributes(value.attributes, f"{path}.attributes"),
    )


def candidates(value: Any, path: str) -> list[Candidate]:
    """Take any iterable of candidates."""
    if not isinstance(value, Iterable):
        raise _wrong(value, path, "a list of Candidate")
    return [candidate(one, f"{path}[{number}]") for number, one in enumerate(value)]


def attributes(value: Any, path: str) -> Attributes:
    """Take a mapping; lists become tuples, and numpy's scalars those of Python."""
    if not isinstance(value, Mapping):
        raise _wrong(value, path, "a dict")
    return {
        string(n, f"the name of one of {path}"): _attribute(v, f"{path}[{n!r}]")
        for n, v in value.items()
    }


def _attribute(value: Any, path: str) -> Any:
    """Return the value as the check of attributes knows it, or what that is to refuse."""
    value = _plain(value)
    if value is None:
        raise InvalidField(path, "is None; leave the attribute out")
    if getattr(value, "ndim", None) == 0:
        raise InvalidField(path, f"is {str(value)[:80]}, which is no value of an attribute")
    if isinstance(value, list | tuple | set | frozenset) or hasattr(value, "__array__"):
        return tuple(texts(value, path))
    return value


def search(value: Search) -> Search:
    """Take a search, whose fields may be what calls take, too."""
    changes = {}
    for field in fields(value):
        given = getattr(value, field.name)
        if field.name in _OF_SEARCH and given is not None:
            changes[field.name] = _OF_SEARCH[field.name](given, field.name)
    return replace(value, **changes)


def searches(value: Any, path: str) -> list[Search]:
    """Take any iterable of searches; see `search` for each."""
    if not isinstance(value, Iterable):
        raise _wrong(value, path, "a list of Search")
    taken = list(value)
    for number, one in enumerate(taken):
        if not isinstance(one, Search):
            raise _wrong(one, f"{path}[{number}]", "a Search")
    return taken


def condition(value: Any, path: str) -> Filter:
    """Take a filter, or one as text in the filter language."""
    if isinstance(value, str):
        from mmesh.filter_language import parse_filter

        return parse_filter(value)
    return _plain_filter(value, path)


def _plain_filter(given: Any, path: str, depth: int = 1) -> Filter:
    """Return a filter whose values are Python's own."""
    from mmesh.filters import MAX_DEPTH, AllOf, AnyOf, Compare, Filter, In, Not

    if not isinstance(given, get_args(Filter)):
        raise _wrong(given, path, "a filter or its text")
    if depth > MAX_DEPTH:
        raise InvalidFilter(path, f"is too large; at most {MAX_DEPTH} deep is allowed")
    match given:
        case AllOf(parts) | AnyOf(parts):
            return type(given)(tuple(_plain_filter(one, path, depth + 1) for one in parts))
        case Not(inner):
            return Not(_plain_filter(inner, path, depth + 1))
        case Compare(_, _, value):
            return replace(given, value=_operand(value, path))
        case In(_, values) if not isinstance(values, str):
            return replace(given, values=tuple(_operand(one, path) for one in values))
    return given  # type: ignore[no-any-return]  # one of the classes that make up a filter


def _operand(value: Any, path: str) -> Any:
    """Return what a filter compares with as Python's own value."""
    if type(value) in (str, int):
        return value  # nearly all are
    value = _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidFilter(path, f"compares with {value}, with which nothing can be compared")
    if getattr(value, "ndim", None) == 0:
        raise InvalidFilter(path, f"compares with {str(value)[:80]}, which no attribute can be")
    return value


def _rerank(value: Any, path: str) -> Rerank:
    if not isinstance(value, Rerank):
        raise _wrong(value, path, "a Rerank")
    return Rerank(
        whole(value.candidates, f"{path}.candidates"),
        _finite(value.max_seconds, f"{path}.max_seconds"),
        whole(value.max_image_tokens, f"{path}.max_image_tokens"),
    )


def _settings(value: Any, path: str) -> CollectionSettings | None:
    if value is None:
        return None
    from mmesh.collections import LIMITS, CollectionLimits, CollectionSettings

    if not isinstance(value, CollectionSettings):
        raise _wrong(value, path, "a CollectionSettings")
    if not isinstance(value.limits, CollectionLimits):
        raise _wrong(value.limits, f"{path}.limits", "a CollectionLimits")
    limits = {n: whole(getattr(value.limits, n), f"{path}.limits.{n}") for n in LIMITS}
    own = {n: take(getattr(value, n), f"{path}.{n}") for n, take in _OF_SETTINGS.items()}
    return replace(value, **own, limits=replace(value.limits, **limits))


def _change(value: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Take new values of settings, each by the name of its argument."""
    from mmesh.collections import LIMITS

    takers = _OF_SETTINGS | dict.fromkeys(LIMITS, whole)
    return {n: takers[n](one, n) if n in takers else one for n, one in value.items()}


def member(kind: type[enum.Enum]) -> Taker:
    """Return what takes a member of an enum, or its name as a str, in small letters."""
    by_name = {one.name.lower(): one for one in kind}

    def take(value: Any, path: str) -> enum.Enum:
        if isinstance(value, kind):
            return value
        if isinstance(value, str) and value in by_name:
            return by_name[value]
        known = ", ".join(by_name)
        raise InvalidField(path, f"is {str(value)[:80]!r}; {known} or a {kind.__name__} is due")

    return take


def members(kind: type[enum.Enum]) -> Taker:
    """Return what takes a member of an enum or its name, or a list or set of these."""
    one = member(kind)

    def take(value: Any, path: str) -> Any:
        if isinstance(value, list | tuple | set | frozenset):
            return frozenset(one(each, path) for each in value)
        return one(value, path)

    return take


def _are_parts(parts: Any) -> bool:
    return isinstance(parts, tuple) and all(
        isinstance(part, str)
        or (isinstance(part, Image) and isinstance(part.data, bytes) and not part.media_type)
        for part in parts
    )


def _plain(value: Any) -> Any:
    """Return Python's own scalar for one of numpy's, which need not be imported for that.

    One that it has no value for, such as a moment beyond the year 9999, is returned as it is.
    """
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    plain = value.item()
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "M" and isinstance(plain, int):  # finer than Python's moments, or beyond them
        plain = value.astype("datetime64[us]").item()
    return value if kind and kind in "mM" and isinstance(plain, int) else plain


def _wrong(value: Any, path: str, due: str) -> InvalidField:
    return InvalidField(path, f"is of type {type(value).__name__}; {due} is due")


_OF_SETTINGS: dict[str, Taker] = {
    "index_factory": text,
    "recall_target": _finite,
    "mirror": text,
    "read_only": flag,
}
_OF_SEARCH: Mapping[str, Taker] = {
    "collection": text,
    "query": content,
    "instruction": text,
    "target": members(Modality),
    "limit": whole,
    "filter": condition,
    "merge": member(MergePolicy),
    "rerank": _rerank,
    "consistency": member(Consistency),
    "token": text,
    "require_all_shards": flag,
    "include_content": flag,
    "explain": flag,
}
TAKERS: Mapping[str, Taker] = {
    **dict.fromkeys(
        (
            "collection",
            "source",
            "name",
            "alias",
            "model",
            "request_id",
            "model_fingerprint",
            "page_token",
        ),
        text,
    ),
    "query": content,
    "searches": searches,
    "ids": texts,
    "filter": condition,
    "settings": _settings,
    "change": _change,
    "data_type": member(DataType),
    "page_size": small,
    "batch_size": _batch_size,
    "patience_s": _patience,
    "notice_ids": whole,
    "timeout": seconds,
    **dict.fromkeys(("include_attributes", "include_images", "include_vectors", "fill"), flag),
}
"""By the name of an argument, wherever it occurs."""
