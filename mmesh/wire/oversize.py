"""Requests that are too large to parse on an event loop, seen in their bytes before.

A message of a few megabytes may have a million values. Parsing it stops the event loop, and
nothing can be done beside it: so the fields that lead to its filters, and those that may be many,
are walked, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmesh.api.encoder.v1 import encoder_pb2
from mmesh.api.gateway.v1 import gateway_pb2
from mmesh.api.index.v1 import index_pb2
from mmesh.api.reranker.v1 import reranker_pb2
from mmesh.candidates import MAX_VALUES
from mmesh.errors import InvalidFilter, InvalidRequest
from mmesh.filters import MAX_MESSAGE_BYTES

MAX_BATCH_BYTES = 8 * MAX_MESSAGE_BYTES
"""Of the filters of all searches of a batch or of a message of a stream, equal ones, too."""
MAX_FIELDS = 8_192
"""Fields of a request that are looked at: 256 searches have about 3,000."""
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_GROUPS = (3, 4)
"""Wire types; a parser skips unknown groups, with what is in them."""


def _path(message: Any, *names: str) -> tuple[int, ...]:
    """Return the numbers of fields within each other."""
    numbers, descriptor = [], message.DESCRIPTOR
    for name in names:
        field = descriptor.fields_by_name[name]
        numbers.append(field.number)
        descriptor = field.message_type
    return tuple(numbers)


_GATEWAY, _INDEX = "/mmesh.api.gateway.v1.RetrievalService", "/mmesh.api.index.v1.IndexService"
FILTERS: Mapping[str, tuple[int, ...]] = {
    f"{_GATEWAY}/Search": _path(gateway_pb2.SearchRequest, "filter"),
    f"{_GATEWAY}/SearchBatch": _path(gateway_pb2.SearchBatchRequest, "searches", "filter"),
    f"{_GATEWAY}/DeleteCandidatesByFilter": _path(
        gateway_pb2.DeleteCandidatesByFilterRequest, "filter"
    ),
    f"{_INDEX}/Search": _path(index_pb2.SearchRequest, "filter"),
    f"{_INDEX}/SearchStream": _path(index_pb2.SearchStreamRequest, "searches", "search", "filter"),
    f"{_INDEX}/DeleteCandidatesByFilter": _path(
        index_pb2.DeleteCandidatesByFilterRequest, "filter"
    ),
}
"""Where the filters of a method's requests are."""


Tree = Mapping[int, Any]
"""Numbers of fields that are walked, each with those within it."""


def _tree(*paths: tuple[int, ...]) -> Tree:
    found: dict[int, Any] = {}
    for path in paths:
        below = found
        for number in path:
            below = below.setdefault(number, {})
    return found


def _of_candidates(message: Any, *around: str) -> Tree:
    lists = ("attributes", "value", "string_list_value", "values")
    return _tree(
        _path(message, *around, "candidates", "content", "parts"),
        _path(message, *around, "candidates", *lists),
    )


_REQUEST = gateway_pb2.SearchRequest
MANY: Mapping[str, Tree] = {
    f"{_GATEWAY}/Search": _tree(_path(_REQUEST, "query", "parts")),
    f"{_GATEWAY}/SearchBatch": _tree(
        _path(gateway_pb2.SearchBatchRequest, "searches", "query", "parts")
    ),
    f"{_GATEWAY}/UpsertCandidates": _of_candidates(gateway_pb2.UpsertCandidatesRequest),
    f"{_GATEWAY}/Ingest": _of_candidates(gateway_pb2.IngestRequest, "batch"),
    f"{_INDEX}/UpsertCandidates": _of_candidates(index_pb2.UpsertCandidatesRequest),
    "/mmesh.api.encoder.v1.EncoderService/Encode": _tree(
        _path(encoder_pb2.EncodeRequest, "inputs", "content", "parts")
    ),
    "/mmesh.api.reranker.v1.RerankerService/Rerank": _tree(
        _path(reranker_pb2.RerankRequest, "query", "parts"),
        _path(reranker_pb2.RerankRequest, "candidates", "parts"),
    ),
}
"""Which fields of a method's requests may be many."""


def check_values(data: bytes, tree: Tree) -> None:
    """Count the fields of a large request that `tree` leads to.

    Raises:
        InvalidRequest: they are more than an event loop has time for.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        _walk(data, 0, len(data), tree, iter(range(MAX_VALUES)))


def _walk(data: bytes, start: int, end: int, tree: Tree, steps: Iterator[int]) -> None:
    for number, first, last in _fields(data, start, end, steps):
        if below := tree.get(number):
            _walk(data, first, last, below, steps)


def check_filters(data: bytes, path: tuple[int, ...]) -> None:
    """Look at the filters that `path` leads to; what is no valid protobuf is left to the parser.

    Raises:
        InvalidFilter: one is too large, or all are together.
        InvalidRequest: the request has more fields than any valid one.
    """
    if len(data) <= MAX_MESSAGE_BYTES:
        return
    steps, total = iter(range(MAX_FIELDS)), 0
    for start, end in _found(data, 0, len(data), path, steps):
        total += end - start
        if end - start > MAX_MESSAGE_BYTES or total > MAX_BATCH_BYTES:
            raise InvalidFilter("filter", f"is too large: it has {end - start:,} bytes")


def _found(
    data: bytes, start: int, end: int, path: tuple[int, ...], steps: Iterator[int]
) -> Iterator[tuple[int, int]]:
    for number, first, last in _fields(data, start, end, steps):
        if number == path[0]:
            if len(path) == 1:
                yield first, last
            else:
                yield from _found(data, first, last, path[1:], steps)


def _fields(
    data: bytes, place: int, end: int, steps: Iterator[int]
) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the fields with a length; ends at what is none."""
    while place < end:
        if next(steps, None) is None:
            raise InvalidRequest("the message has too many fields; send fewer things at a time")
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == _BYTES:
            length, place = _varint(data, place)
            yield tag >> 3, place, min(place + length, end)
            place += length
        elif kind == _VARINT:
            _, place = _varint(data, place)
        elif kind in (_FIXED_64, _FIXED_32):
            place += 8 if kind == _FIXED_64 else 4
        elif kind in _GROUPS:
            raise InvalidRequest("the message has a group, which no request has")
        else:
            return


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, place
