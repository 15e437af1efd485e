"""How far an ingest came, kept on disk, so that the same command goes on after it was killed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmesh.collections import Collection

_EVERY_S = 0.5


class Journal:
    """Remembers how many leading candidates of an ingest are settled.

    It belongs to the collection as it was created and to the sources as they are on disk: when one
    of them changes, an ingest begins at the beginning. So do two commands that read them otherwise.
    """

    def __init__(
        self,
        collection: Collection,
        address: str,
        sources: tuple[Path, ...],
        command: str = "ingest",
    ) -> None:
        stamps = [_stamp(source) for source in sources]
        created = collection.create_time.isoformat()
        key = json.dumps([command, address, collection.name, created, stamps])
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        self._path = _folder() / f"{name}.json"
        self._written_at = 0.0

    def read(self) -> int:
        """Return how many leading candidates are settled; 0 when nothing is known."""
        try:
            return int(json.loads(self._path.read_text())["settled"])
        except (OSError, ValueError, KeyError):
            return 0

    def write(self, settled: int) -> None:
        """Note progress, now and then."""
        if time.monotonic() - self._written_at < _EVERY_S:
            return
        self._written_at = time.monotonic()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"settled": settled}))
        os.replace(new, self._path)

    def finish(self) -> None:
        """Forget: the ingest is done."""
        self._path.unlink(missing_ok=True)


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mmesh" / "ingests"


def _stamp(source: Path) -> list[str | int]:
    found = source.stat()
    return [str(source.resolve()), found.st_size, found.st_mtime_ns]
