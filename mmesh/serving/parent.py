"""Parent-death watch of a service: it drains when the process that started it is gone.

A thread looks, from the first moment on: a model may take minutes to load, and an event loop that
is blocked must not keep a process that nobody will ever stop.
"""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_S = 0.25


def stop_with_parent(within_s: float, *, parent: int | None = None) -> None:
    """Have this process get a SIGTERM when its parent ends, and end after `within_s` in any case.

    Before there is a handler the signal ends it at once.
    """
    watched = os.getppid() if parent is None else parent
    threading.Thread(target=_watch, args=(watched, within_s), name="parent", daemon=True).start()


def _watch(parent: int, within_s: float) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(within_s)
    os._exit(1)
