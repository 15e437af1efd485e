"""A name server on loopback whose answers a test changes (RFC 1035, A records only)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

PORT = 53
"""Where resolvers of libc ask; /etc/resolv.conf cannot name another port."""
_ANSWER, _NO_SUCH_NAME = 0x8580, 0x8583
_A, _IN = 1, 1


class NameServer(asyncio.DatagramProtocol):
    """Answers with the addresses in `names`; they may change at any time."""

    def __init__(self) -> None:
        self.names: dict[str, Sequence[str]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self, host: str) -> None:
        """Listen on port 53 of a loopback address.

        Raises:
            OSError: this user may not, or somebody listens there.
        """
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=(host, PORT)
        )

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode())
            at += 1 + length
        question = data[12 : at + 5]
        kind = struct.unpack("!H", data[at + 1 : at + 3])[0]
        found = self.names.get(".".join(labels).lower())
        addresses = found if found and kind == _A else ()
        flags = _NO_SUCH_NAME if found is None else _ANSWER
        reply = data[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0) + question
        for address in addresses:
            # The name is a pointer to that of the question; nobody may remember it (TTL 0).
            reply += struct.pack("!HHHIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(address)
        assert self._transport is not None
        self._transport.sendto(reply, addr)
