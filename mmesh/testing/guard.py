"""A watchdog for servers that tests start: when the process that started them is gone, they end.

A test run that is killed runs none of its clean-up. Tying a server to its parent by the kernel
(PR_SET_PDEATHSIG) needs code between fork and exec, which is unsafe in a process that uses gRPC;
so a small process of its own watches both and outlives the parent by as long as it takes.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PATIENCE_S = 10.0
"""Time for a server to end by the first signal; then it is killed."""


class Guard:
    """Watches over a server until `close`.

    Args:
        pid: the server, a child of this process.
        number: the signal that ends it.
        folder: removed after the server has ended.
    """

    def __init__(self, pid: int, number: int, folder: Path | None = None) -> None:
        command = [sys.executable, "-IS", __file__, str(os.getpid()), str(pid), str(int(number))]
        self._process = subprocess.Popen(
            command + ([str(folder)] if folder else []),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # what ends all of a terminal or a group must not end it
        )

    def close(self) -> None:
        """Watch no longer: the server ends, or has ended, by the hand of its parent."""
        self._process.kill()
        self._process.wait()


def watch(parent: int, server: int, number: int, folder: Path | None) -> None:
    """Return when the server has ended; end it when the parent is gone before."""
    try:
        handle = os.pidfd_open(server)
    except ProcessLookupError:
        return
    if not _is_first_to_end(parent, handle):
        return
    for one in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, one)
        if select.select([handle], [], [], PATIENCE_S)[0]:
            break
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _is_first_to_end(parent: int, server: int) -> bool:
    """Wait for either; tell whether it was the parent."""
    try:
        watched = os.pidfd_open(parent)
    except ProcessLookupError:
        return True
    if os.getppid() != parent:  # gone, and its number may be that of another by now
        return True
    return watched in select.select([watched, server], [], [])[0]


def main(arguments: Sequence[str]) -> None:
    """Watch over the process whose numbers are given."""
    parent, server, number, *folder = arguments
    watch(int(parent), int(server), int(number), Path(folder[0]) if folder else None)


if __name__ == "__main__":
    main(sys.argv[1:])
