"""Clients of the encoder in a process of their own: what they do takes no time from the server."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import grpc

ENCODE = "/mmesh.api.encoder.v1.EncoderService/Encode"
PATIENCE_S = 120.0
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Clients:
    """A process that calls a server with requests in bytes; a context manager."""

    def __init__(self, address: str) -> None:
        self._ours, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(theirs, address))
        self._process.start()
        self._ours.recv()  # it has imported what it needs

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.send(None)
        self._process.join(30)

    def bulk(self, requests: Sequence[bytes], clients: int, seconds: float) -> Bulk:
        """Return what sends requests over and over, so many at a time, for about so long."""
        return Bulk(lambda: self._call("bulk", requests, clients, seconds))

    def paced(self, requests: Sequence[bytes], per_s: float) -> list[float]:
        """Send requests at a steady rate; return the seconds of each from when it was due."""
        times: list[float] = self._call("paced", requests, per_s)
        return times

    def _call(self, *order: Any) -> Any:
        self._ours.send(order)
        answer = self._ours.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"a client failed: {answer}")
        return answer


class Bulk:
    """Bulk work that runs on a thread of ours until it is awaited."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._answer: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._answer = call()
        except Exception as error:
            self._error = error

    def calls_per_s(self) -> float:
        """Wait for the end; return calls a second while all clients were busy."""
        self._thread.join()
        if self._error:
            raise self._error
        ended: list[float] = sorted(self._answer)
        steady = ended[len(ended) // 5 :]  # the queue has filled
        return (len(steady) - 1) / (steady[-1] - steady[0])


def _serve(orders: Connection, address: str) -> None:
    works = {"bulk": _bulk, "paced": _paced}
    orders.send("ready")
    while (order := orders.recv()) is not None:
        name, *arguments = order
        try:
            orders.send(works[name](address, *arguments))
        except Exception as error:
            orders.send(repr(error))


@contextmanager
def _encode(address: str) -> Iterator[Callable[..., bytes]]:
    options = [("grpc.use_local_subchannel_pool", 1), *_UNLIMITED]
    with grpc.insecure_channel(address, options=options) as channel:
        yield channel.unary_unary(ENCODE)


def _bulk(address: str, requests: Sequence[bytes], clients: int, seconds: float) -> list[float]:
    until = time.perf_counter() + seconds
    ended: list[float] = []
    errors: list[Exception] = []

    def client(number: int) -> None:
        with _encode(address) as encode:
            for turn in itertools.count(number, clients):
                if time.perf_counter() > until or errors:
                    return
                try:
                    encode(requests[turn % len(requests)], timeout=PATIENCE_S)
                except Exception as error:
                    errors.append(error)
                ended.append(time.perf_counter())

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return ended


def _paced(address: str, requests: Sequence[bytes], per_s: float) -> list[float]:
    times = []
    with _encode(address) as encode:
        start = time.perf_counter()
        for number, request in enumerate(requests):
            due = start + number / per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            encode(request, timeout=PATIENCE_S)
            times.append(time.perf_counter() - due)
    return times
