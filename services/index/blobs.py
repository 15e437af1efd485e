"""Pictures in a folder, by the SHA-256 of their bytes; on disk before `put` returns."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from mmesh.errors import DataLoss, LogUnavailable, StorageFull

FULL = (errno.ENOSPC, errno.EDQUOT)


class LocalBlobs:
    """A content-addressed folder: equal bytes are stored once, and never change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store `data` and return its hash, in hexadecimal.

        Raises:
            StorageFull: the disk is full; nothing was stored.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not path.exists():
            try:
                self._write(path, data)
            except OSError as error:
                if error.errno in FULL:
                    raise StorageFull(
                        "the disk is full; nothing of the request was stored"
                    ) from error
                raise LogUnavailable(f"pictures cannot be stored: {error.strerror}") from error
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes with this hash.

        Raises:
            DataLoss: they are missing or changed.
        """
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError:
            raise DataLoss("a stored picture is missing", {"sha256": digest}) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataLoss("a stored picture fails its checksum", {"sha256": digest})
        return data

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest[2:]

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
