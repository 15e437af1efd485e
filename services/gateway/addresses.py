"""Address resolution: fixed addresses, names in the DNS, or a file that may change."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

RESOLVE_S = 3.0
"""Seconds between looks into the DNS."""
_DNS, _FILE = "dns:///", "file:"


class AddressBook:
    """Turns what the settings say into addresses, again and again; one of them is one process.

    A source that cannot be read keeps the addresses that it had: a name server that is away for a
    moment must not take the shards away.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = [_source_of(source) for source in sources]

    async def look(self) -> list[str]:
        """Return the addresses of all sources in their order, each once."""
        found = [await source.look() for source in self._sources]
        return list(dict.fromkeys(address for addresses in found for address in addresses))


class _Fixed:
    def __init__(self, address: str) -> None:
        self._addresses = [address]

    async def look(self) -> list[str]:
        return self._addresses


class _Name:
    """All addresses of a name, such as that of a headless Service."""

    def __init__(self, name: str) -> None:
        host, _, port = name.rpartition(":")
        self._host, self._port = host.strip("[]"), port
        self._addresses: list[str] = []
        self._due = 0.0

    async def look(self) -> list[str]:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + RESOLVE_S
            try:
                self._addresses = await self._resolve()
            except (OSError, UnicodeError) as error:
                extra = {"host": self._host, "error": str(error)}
                logger.warning("name not resolved", extra=extra)
        return self._addresses

    async def _resolve(self) -> list[str]:
        try:
            return await self._ask_for(socket.AF_INET)
        except OSError:
            return await self._ask_for(socket.AF_INET6)

    async def _ask_for(self, family: socket.AddressFamily) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            self._host, self._port, family=family, type=socket.SOCK_STREAM
        )
        template = "[{}]:{}" if family is socket.AF_INET6 else "{}:{}"
        return sorted({template.format(*where[:2]) for *_, where in found})


class _File:
    """A JSON list of addresses, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._addresses: list[str] = []
        self._seen: tuple[int, int, int] | None = None

    async def look(self) -> list[str]:
        try:
            state = self._path.stat()
            seen = (state.st_ino, state.st_mtime_ns, state.st_size)
            if seen != self._seen:
                self._addresses = _addresses_in(self._path.read_text())
                self._seen = seen
        except (OSError, ValueError) as error:
            extra = {"path": str(self._path), "error": str(error)}
            logger.warning("addresses not read", extra=extra)
        return self._addresses


def _addresses_in(text: str) -> list[str]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError("is no JSON list of addresses")
    return found


def _source_of(source: str) -> _Fixed | _Name | _File:
    if source.startswith(_FILE):
        return _File(Path(source.removeprefix(_FILE)))
    if source.startswith(_DNS):
        return _Name(source.removeprefix(_DNS))
    return _Fixed(source)
