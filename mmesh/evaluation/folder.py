"""The folder of a run: a lock for one command at a time, and the manifest of its answers."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmesh.evaluation.datasets.dataset import DatasetError
from mmesh.evaluation.whole_files import written_whole

MANIFEST, LOCK = "evaluation.json", "lock"


class OtherEvaluation(DatasetError):
    """The folder holds answers of another evaluation."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and keep other commands out of it; the lock ends with the process.

    Raises:
        DatasetError: another command works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = (
                "another `mmesh evaluate` works in it; wait for it, or name another with --out"
            )
            raise DatasetError(f"{folder}: {problem}") from None
        yield


def check_manifest(folder: Path, mine: Mapping[str, Any]) -> None:
    """Write the manifest of an evaluation down, or make sure that the one there says the same.

    Raises:
        OtherEvaluation: it says something else, or a version that noted less wrote it.
    """
    path = folder / MANIFEST
    if not path.exists():
        with written_whole(path) as file:
            file.write(json.dumps(mine, indent=1) + "\n")
        return
    other = _read(path)
    missing = [name for name in mine if name not in other] if other else []
    if missing:
        names = ", ".join(missing)
        raise OtherEvaluation(f"{folder} holds answers of an older version that noted no {names}")
    differ = [name for name, value in mine.items() if other.get(name) != value]
    if differ:
        names = ", ".join(differ)
        raise OtherEvaluation(f"{folder} holds answers of another evaluation ({names})")


def _read(path: Path) -> dict[str, Any]:
    """Return a manifest; nothing when it is damaged: nobody knows what the answers are of."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
