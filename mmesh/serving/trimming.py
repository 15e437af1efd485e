"""Memory trimming: what malloc holds of freed blocks goes back to the system.

Calls and batches take tens of megabytes, which malloc keeps for the next ones (`keep_freed`):
giving them back at once would cost each of them thousands of page faults. A service that has
nothing to do needs none, and one that is never idle gives them back three times a minute: else free
blocks between others that stay hold ever more pages (fragmentation), and memory grows for hours.
"""

from __future__ import annotations

import ctypes
import threading
import time

LOOK_S = 3.0
"""How long there must be nothing to do."""
BUSY_S = 20.0
"""How long a process that is never idle keeps what it has freed."""
IDLE_SHARE = 0.02
"""Share of a core below which a process counts as idle; its timers and health checks take less."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256 << 20


def keep_freed() -> None:
    """Let malloc keep what is freed, blocks of any size, until it is trimmed (glibc).

    By itself it maps each block over 32 MiB anew, all of whose pages fault. So gRPC's copies of a
    message of 57 MiB hold the event loop for longer than 50 ms (benchmarks/large_messages.py).
    For a process that has started: what a start frees comes back to no use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def trim_now_and_then(look_s: float = LOOK_S, busy_s: float = BUSY_S) -> None:
    """Let a thread of this process trim after each spell of work, and in the middle of long ones.

    The start is such a spell, too.
    """
    threading.Thread(target=_watch, args=(look_s, busy_s), name="trim", daemon=True).start()


def _watch(look_s: float, busy_s: float) -> None:
    limit = IDLE_SHARE * look_s
    trimmed = used = 0.0
    until = time.monotonic() + busy_s
    while True:
        time.sleep(look_s)
        before, used = used, time.process_time()
        is_idle, is_due = used - before < limit, time.monotonic() >= until
        if used - trimmed > limit and (is_idle or is_due):
            trim()
            trimmed = used = time.process_time()
            until = time.monotonic() + busy_s


def trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
