"""One encoder service as a process of its own, and what benchmarks send to it."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np
from bench import in_threads
from PIL import Image

from mmesh import Content, wire
from mmesh.api.encoder.v1 import encoder_pb2
from mmesh.local.mesh import is_serving
from mmesh.local.ports import free_port
from mmesh.models.encoders.lite.artefacts import DATA, VOCABULARY

START_S = 120.0
PATIENCE_S = 600.0
CLIENT_NICE = 10
"""Clients give way to the server, as if they ran on machines of their own."""
SERVICE = "mmesh.api.encoder.v1.EncoderService"
ENCODE = f"/{SERVICE}/Encode"


class Served(Protocol):
    """A running server; its calls go from bytes to bytes, so that clients have little to do."""

    def encode(self) -> AbstractContextManager[Callable[..., bytes]]:
        """Yield a function of a request and its `timeout`, on a connection of its own."""


@dataclass
class EncoderProcess:
    """A running encoder service; `running_encoder` makes one."""

    process: subprocess.Popen[bytes]
    address: str

    def used_bytes(self) -> int:
        """Return the memory that the process has in use."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024

    @contextmanager
    def encode(self) -> Iterator[Callable[..., bytes]]:
        """Yield the method on a connection of its own, bytes to bytes."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            yield channel.unary_unary(ENCODE)


@contextmanager
def running_encoder(*arguments: str) -> Iterator[EncoderProcess]:
    """Start `python -m services.encoder` and wait until it serves."""
    port = free_port()
    command = [sys.executable, "-m", "services.encoder", "--port", str(port), *arguments]
    process = subprocess.Popen([*command, "--log-level", "WARNING", "--stop-with-parent"])
    encoder = EncoderProcess(process, f"127.0.0.1:{port}")
    try:
        _wait_ready(encoder)
        yield encoder
    finally:
        process.terminate()
        process.wait(60)


def _wait_ready(encoder: EncoderProcess) -> None:
    until = time.monotonic() + START_S
    while not asyncio.run(is_serving(encoder.address, SERVICE)):
        if encoder.process.poll() is not None or time.monotonic() > until:
            raise SystemExit("the encoder did not start; its last lines are above")
        time.sleep(0.2)


# -- inputs


class Texts:
    """Texts of given lengths that are never the same twice."""

    def __init__(self, seed: int) -> None:
        with np.load(DATA / VOCABULARY) as file:
            self._words = [word for name in file["names"].tolist() for word in name.split()]
        self._random = np.random.default_rng(seed)

    def of_words(self, lengths: Sequence[int]) -> list[Content]:
        """Return a text of each length."""
        pick = self._random.integers
        return [
            Content.of(" ".join(self._words[n] for n in pick(len(self._words), size=length)))
            for length in lengths
        ]

    def alike(self, count: int, words: int = 24) -> list[Content]:
        """Return texts of nearly the same length, as sentences are."""
        return self.of_words(self._random.integers(words - 6, words + 7, count))

    def lognormal(self, count: int) -> list[Content]:
        """Return texts as a web crawl has them: half below 24 words, a few as long as can be."""
        lengths = self._random.lognormal(np.log(24), 0.9, count)
        return self.of_words(np.clip(lengths, 2, 400).astype(int))


def pictures(count: int, seed: int, side: int = 256) -> list[Content]:
    """Return JPEG pictures that are never the same twice."""
    random = np.random.default_rng(seed)
    return [Content.of(_jpeg(random, side)) for _ in range(count)]


def _jpeg(random: np.random.Generator, side: int) -> bytes:
    coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG")
    return data.getvalue()


def pack(contents: Sequence[Content], *, bulk: bool) -> bytes:
    """Return the bytes of a request, as the gateway would send it."""
    request = encoder_pb2.EncodeRequest(
        inputs=[encoder_pb2.Input(content=wire.content_to_pb(content)) for content in contents],
        role=encoder_pb2.ROLE_CANDIDATE if bulk else encoder_pb2.ROLE_QUERY,
        priority=encoder_pb2.PRIORITY_BULK if bulk else encoder_pb2.PRIORITY_INTERACTIVE,
    )
    return request.SerializeToString()


def as_clients(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` on threads that give way to the server; the first error is raised."""

    def client(number: int) -> None:
        os.nice(CLIENT_NICE)  # of this thread alone, on Linux
        work(number)

    in_threads(count, client)


def send_all(server: Served, requests: Sequence[bytes], clients: int) -> list[float]:
    """Send every request once, so many at a time, and return when they were answered, in order."""
    waiting = iter(requests)
    lock = threading.Lock()
    ended: list[float] = []

    def client(_: int) -> None:
        with server.encode() as encode:
            while True:
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                encode(request, timeout=PATIENCE_S)
                ended.append(time.perf_counter())

    as_clients(clients, client)
    return sorted(ended)


def saturated_rate(server: Served, requests: Sequence[bytes], clients: int) -> float:
    """Send every request once, so many at a time; return requests a second while all were busy.

    What was answered while the first requests of all clients came in, and after the last one was
    sent, is left out. Calls that are sent together are often answered together: the time counts
    from the end of one such group to the end of another.
    """
    if len(requests) < 2 * clients + 2:
        raise SystemExit(f"{len(requests)} calls are too few to keep {clients} clients busy")
    steady = send_all(server, requests, clients)[clients - 1 : -clients]
    return (len(steady) - 1) / (steady[-1] - steady[0])


@contextmanager
def saturated(server: Served, requests: Sequence[bytes], clients: int) -> Iterator[None]:
    """Send requests over and over, so many at a time, until the end of the block."""
    stop = threading.Event()

    def client(number: int) -> None:
        with server.encode() as encode:
            for turn in itertools.count(number, clients):
                if stop.is_set():
                    return
                encode(requests[turn % len(requests)], timeout=PATIENCE_S)

    thread = threading.Thread(target=as_clients, args=(clients, client))
    thread.start()
    try:
        time.sleep(1)  # until the queue is full
        yield
    finally:
        stop.set()
        thread.join()
