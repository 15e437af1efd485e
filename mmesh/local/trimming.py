"""Memory trimming: what malloc holds of freed blocks goes back to the system while all is idle.

Calls and batches take tens of megabytes, which malloc keeps for the next ones: giving them back at
once would cost each of them thousands of page faults. A service that has nothing to do needs none.
"""

from __future__ import annotations

import ctypes
import threading
import time

LOOK_S = 3.0
"""How long there must be nothing to do."""
IDLE_SHARE = 0.02
"""Share of a core below which a process counts as idle; its timers and health checks take less."""


def trim_when_idle(look_s: float = LOOK_S) -> None:
    """Let a thread of this process trim after each spell of work, the start being one."""
    threading.Thread(target=_watch, args=(look_s,), name="trim", daemon=True).start()


def _watch(look_s: float) -> None:
    limit = IDLE_SHARE * look_s
    trimmed = used = 0.0
    while True:
        time.sleep(look_s)
        before, used = used, time.process_time()
        if used - before < limit < used - trimmed:
            trim()
            trimmed = used = time.process_time()


def trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
