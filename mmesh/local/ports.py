"""Ports for servers of this machine that are told their number before they start."""

from __future__ import annotations

import errno
import random
import socket

_HOST = "127.0.0.1"
_PORTS = range(20_000, 30_000)
"""Below those that systems give to whoever asks for any port, and to every connection: one of them
could be gone before the server starts."""
_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on, another one each time.

    Raises:
        OSError: there is none left.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise OSError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free")


def is_taken(port: int) -> bool:
    """Tell whether somebody listens on a port.

    Raises:
        OSError: a server could not listen there for another reason, such as a lack of permission.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections may linger there
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise OSError(error.errno, f"port {port}: {error.strerror}") from None
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
