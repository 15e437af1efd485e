"""What a path leads to: a file or folder, or something that gives its bytes only once."""

from __future__ import annotations

import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def why_not_read(path: Path) -> str:
    """Return why a path cannot be read from its beginning again and again.

    Empty for files and folders, and for what is not there, of which opening it tells.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "")
    return f"is a {kind}; write it to a file first" if kind else ""
