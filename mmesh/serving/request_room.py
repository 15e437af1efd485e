"""Admission control by bytes: large requests that are under way share a bounded memory.

A request is held as a message, as what it was converted to and often as the message that is made
of that, for as long as it waits for others. Calls are counted elsewhere, but a few large ones take
as much memory as ten thousand small ones.
"""

from __future__ import annotations

from typing import Self

from mmesh.errors import Overloaded

SMALL_BYTES = 1 << 16
"""Requests of no more are always let in."""


class RequestRoom:
    """Counts the bytes of large requests under way, of which there may be `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    def of(self, size: int) -> HeldRoom:
        """Take room for a request of `size` bytes; one that finds nothing held is let in.

        Raises:
            Overloaded: too much is held already.
        """
        taken = size if size > SMALL_BYTES else 0
        if taken and self.held_bytes and self.held_bytes + taken > self._most_bytes:
            raise Overloaded(
                f"requests of {self.held_bytes:,} bytes are under way; "
                f"at most {self._most_bytes:,} are held at a time"
            )
        return HeldRoom(self, taken)


class HeldRoom:
    """Room that was taken; given back once, at the end of a `with`, or when nobody has it."""

    __slots__ = ("_room", "_size")

    def __init__(self, room: RequestRoom, size: int) -> None:
        self._room, self._size = room, size
        room.held_bytes += size

    def give_back(self) -> None:
        """Let others have it."""
        self._room.held_bytes -= self._size
        self._size = 0

    def __enter__(self) -> Self:
        """Do nothing more: it is taken from the first moment on."""
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def __del__(self) -> None:
        self.give_back()
