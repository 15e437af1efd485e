"""Log rotation by copy and truncation: whoever writes to a log has it open, and goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

LOOK_S = 30.0
"""Between two looks at the logs of a mesh."""


def rotate(log: Path, most_bytes: int) -> bool:
    """Begin a log anew that is larger, and tell whether it was.

    What was in it is kept as NAME.1.log, in place of what was kept before. Whoever writes to it
    must append: what is written between the last read and the truncation is lost (microseconds).

    Raises:
        OSError: there is no space for a copy, say; the log is left as it is.
    """
    if not log.exists() or log.stat().st_size <= most_bytes:
        return False
    kept = log.with_suffix(".1.log")
    try:
        with log.open("r+b") as source, kept.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            source.truncate(0)
    except OSError:
        kept.unlink(missing_ok=True)
        raise
    return True
