"""Pictures by the SHA-256 of their bytes; durable before `put` returns.

    blobs/{2 digits}/{62 digits}.{period}    a copy, made in an hour of which this is the number
    blobs/{2 digits}/{62 digits}             one of a time before copies had periods

Rows name copies. A picture that is put again in the same hour is the same copy, later another one:
so nobody comes to name a copy that is older than that, and one that is not named for hours will
never be again (`garbage` relies on it).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mmesh.errors import DataLoss, LogUnavailable, StorageFull, Unavailable
from services.index.store.objects import Objects, open_objects

ROOT = "blobs"
PERIOD_S = 3600
"""Seconds within which a copy may be named that is there already."""
_NAMED = re.compile(r"[0-9a-f]{64}(\.[0-9a-z]{1,16})?")


class Blobs(Protocol):
    """Bytes that rows name; they never change."""

    def put(self, data: bytes) -> str:
        """Store `data` durably and return the name of the copy: its hash, and more."""

    def get(self, name: str) -> bytes:
        """Return the bytes that `put` gave this name."""


class ContentBlobs:
    """Blobs among other objects, below `blobs/`. May be used from several threads."""

    def __init__(self, objects: Objects, *, clock: Callable[[], float] = time.time) -> None:
        self._objects = objects
        self._clock = clock

    def put(self, data: bytes) -> str:
        """Store `data`, unless this hour's copy is there, and return the name of the copy.

        The store is asked each time: what was there a moment ago may be lost.

        Raises:
            StorageFull: there is no room; nothing was stored.
            LogUnavailable: the store cannot be reached; nothing was stored.
        """
        name = f"{hashlib.sha256(data).hexdigest()}.{int(self._clock() // PERIOD_S):x}"
        try:
            if self._objects.size(key_of(name)) != len(data):
                self._objects.put(key_of(name), data)
        except StorageFull:
            raise
        except Unavailable as error:
            raise LogUnavailable(f"pictures cannot be stored: {error.message}") from error
        return name

    def get(self, name: str) -> bytes:
        """Return the bytes of this name.

        Raises:
            DataLoss: they are missing or changed.
            Unavailable: the store cannot be reached.
        """
        digest = name.partition(".")[0]
        try:
            data = self._objects.get(key_of(name))
        except DataLoss:
            raise DataLoss("a stored picture is missing", {"sha256": digest}) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataLoss("a stored picture fails its checksum", {"sha256": digest})
        return data


def open_blobs(address: str | Path, *, allow_http: bool = False) -> ContentBlobs:
    """Open the blobs of a data folder or of an S3 address; see `open_objects`."""
    return ContentBlobs(open_objects(address, allow_http=allow_http))


def key_of(name: str) -> str:
    """Return the key of the object with this name."""
    return f"{ROOT}/{name[:2]}/{name[2:]}"


def name_of(key: str) -> str | None:
    """Return the name of the copy that an object is; None for any other object."""
    name = "".join(key.removeprefix(f"{ROOT}/").split("/"))
    return name if _NAMED.fullmatch(name) and key_of(name) == key else None
