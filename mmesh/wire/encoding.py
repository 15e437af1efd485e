"""Large messages off the event loop: built in a worker thread, serialised piece by piece.

protobuf serialises a message in one call that holds the GIL, 60 MiB of pictures for 85 ms, and a
thread changes nothing about that. The encoding of a message is the concatenation of those of its
fields (protobuf.dev/programming-guides/encoding), so they can be made one by one. Each picture is
copied twice, as its field is listed and as the pieces are joined, which lets go of the GIL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from mmesh.candidates import Candidate
from mmesh.content import Content

LARGE_BYTES = 1 << 20
"""From here on a message is worth a thread: it takes a millisecond to build."""
Built = TypeVar("Built", bound=Message)
Channel = TypeVar("Channel")


async def built(size: int, build: Callable[[], Built]) -> Built:
    """Return the message that `build` returns; one of many bytes is built and encoded in a thread.

    Then it is the encoding that is returned, whatever the type says: serializers here take both.
    """
    if size < LARGE_BYTES:
        return build()
    return cast(Built, await asyncio.to_thread(lambda: encode(build())))


def content_bytes(contents: Iterable[Content]) -> int:
    """Return about how many bytes contents take in a message."""
    return sum(content.size for content in contents)


def candidate_bytes(candidates: Iterable[Candidate]) -> int:
    """Return about how many bytes candidates take in a message, with their attributes."""
    return sum(candidate.size for candidate in candidates)


def as_bytes(message: Message | bytes) -> bytes:
    """Return the encoding of a message, or the bytes if it is encoded already: a serializer."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def taking_bytes(channel: Channel) -> Channel:
    """Return a channel for a stub whose unary calls take messages, or encodings of such."""
    return cast(Channel, _TakingBytes(channel))


class _TakingBytes:
    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def unary_unary(self, method: str, **options: Any) -> Any:
        return self._channel.unary_unary(method, **options | {"request_serializer": as_bytes})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


def encode(message: Message) -> bytes:
    """Return the encoding of a message, made so that other threads can run in between."""
    return b"".join(_pieces(message))


def _pieces(message: Message) -> list[bytes]:
    fields = message.ListFields()
    plain, pieces = type(message)(), []
    for field, value in fields:
        if _holds_messages(field):
            for one in value if field.is_repeated else (value,):
                inner = _pieces(one)
                pieces += [_header(field.number, sum(map(len, inner))), *inner]
        elif isinstance(value, bytes):
            pieces += [_header(field.number, len(value)), value]
        else:
            _copy(field, value, plain)
    return [plain.SerializeToString(), *pieces] if pieces else [message.SerializeToString()]


def _holds_messages(field: FieldDescriptor) -> bool:
    """Tell whether a field holds messages; entries of maps are small and not counted."""
    kind = field.message_type
    return kind is not None and not kind.GetOptions().map_entry


def _copy(field: FieldDescriptor, value: Any, to: Message) -> None:
    if field.is_repeated:
        getattr(to, field.name).MergeFrom(value)
    else:
        setattr(to, field.name, value)


def _header(number: int, length: int) -> bytes:
    """Return tag and length of an embedded message (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
