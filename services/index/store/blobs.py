"""Pictures by the SHA-256 of their bytes; durable before `put` returns."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from mmesh.errors import DataLoss, LogUnavailable, StorageFull, Unavailable
from services.index.store.objects import Objects, open_objects

REMEMBERED = 8192


class Blobs(Protocol):
    """Bytes by the SHA-256 of their content; equal bytes are stored once, and never change."""

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its hash, in hexadecimal."""

    def get(self, digest: str) -> bytes:
        """Return the bytes with this hash."""


class ContentBlobs:
    """Blobs among other objects, below `blobs/`. May be used from several threads."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self._stored: OrderedDict[str, None] = OrderedDict()

    def put(self, data: bytes) -> str:
        """Store `data` and return its hash, in hexadecimal.

        Raises:
            StorageFull: there is no room; nothing was stored.
            LogUnavailable: the store cannot be reached; nothing was stored.
        """
        digest = hashlib.sha256(data).hexdigest()
        if self._is_remembered(digest):
            return digest
        try:
            if self._objects.size(_key(digest)) != len(data):
                self._objects.put(_key(digest), data)
        except StorageFull:
            raise
        except Unavailable as error:
            raise LogUnavailable(f"pictures cannot be stored: {error.message}") from error
        self._remember(digest)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes with this hash.

        Raises:
            DataLoss: they are missing or changed.
            Unavailable: the store cannot be reached.
        """
        try:
            data = self._objects.get(_key(digest))
        except DataLoss:
            raise DataLoss("a stored picture is missing", {"sha256": digest}) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataLoss("a stored picture fails its checksum", {"sha256": digest})
        return data

    def _is_remembered(self, digest: str) -> bool:
        with self._lock:
            if digest not in self._stored:
                return False
            self._stored.move_to_end(digest)
            return True

    def _remember(self, digest: str) -> None:
        with self._lock:
            self._stored[digest] = None
            while len(self._stored) > REMEMBERED:
                self._stored.popitem(last=False)


def open_blobs(address: str | Path, *, allow_http: bool = False) -> ContentBlobs:
    """Open the blobs of a data folder or of an S3 address; see `open_objects`."""
    return ContentBlobs(open_objects(address, allow_http=allow_http))


def _key(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest[2:]}"
