"""A folder of this process' own for segments: disposable, and removed when nobody owns it."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX = "mmesh-index-"
LOCK = "owner.lock"


class Scratch:
    """A folder that is removed on close; those that killed processes left are removed at start."""

    def __init__(self, parent: Path | None) -> None:
        root = parent or Path(tempfile.gettempdir())
        root.mkdir(parents=True, exist_ok=True)
        _remove_orphans(root)
        self.folder, self._lock = _owned_folder(root)
        self._numbers = itertools.count(1)
        self._remover = ThreadPoolExecutor(1, "remove")

    def new(self, kind: str) -> Path:
        """Return a path in the folder that is not used yet."""
        return self.folder / f"{kind}-{next(self._numbers)}"

    def discard(self, folders: Sequence[Path]) -> None:
        """Remove folders inside this one, on a thread; others are left alone.

        A folder that is empty by that goes with the last one in it.
        """
        for folder in folders:
            if folder.is_relative_to(self.folder):
                self._remover.submit(self._remove, folder)

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent != self.folder:
            with suppress(OSError):
                folder.parent.rmdir()

    def close(self) -> None:
        """Remove everything."""
        self._remover.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _owned_folder(root: Path) -> tuple[Path, IO[str]]:
    """Make a folder and lock it; between the two another process may take it for an orphan."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock


def _remove_orphans(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def _lock(folder: Path) -> IO[str] | None:
    """Lock a folder for this process and return what holds the lock, or None if another has it.

    A folder of another user is theirs, and a lock that is a link leads to a file of somebody's.
    """
    try:
        if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
            return None
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(folder / LOCK, flags, 0o600), "r+")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
