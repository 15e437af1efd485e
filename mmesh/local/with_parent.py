"""Parent-death signal: a program that ends with the process that started it, however that ends.

`python with_parent.py PARENT PROGRAM ARGUMENT...` becomes the program. Linux only; elsewhere the
program has to be stopped. It is run by its path, so that it imports nothing else of mmesh.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process, a new child, when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def command_with_parent(program: str, *arguments: str) -> list[str]:
    """Return the command line of a program that is to end with this process."""
    if sys.platform != "linux":
        return [program, *arguments]
    return [sys.executable, "-IS", __file__, str(os.getpid()), program, *arguments]


def main() -> None:
    """Become the program."""
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
