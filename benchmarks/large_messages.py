"""How long a large message holds the event loop: as it is encoded, and as gRPC copies it.

Protobuf's one call is beside encoding in pieces; gRPC's copies in memory that malloc maps anew each
time are beside those in memory that it keeps, as services do (`mmesh.serving.trimming`). The CPU
time of a thread is counted, and the longest piece or turn, since the GIL is held for so long.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import grpc
import numpy as np
from bench import Report, options_of, run

from mmesh.api.index.v1 import index_pb2
from mmesh.candidates import Candidate
from mmesh.content import Content, Image
from mmesh.serving.trimming import keep_freed
from mmesh.wire import candidate_to_pb, encoding

SHAPES = {
    "60 pictures of 1 MiB": (60, 1 << 20),
    "3 of 20 MiB": (3, 20 << 20),
    "250 of 100 KiB": (250, 100 << 10),
}
COPIED = 57 << 20
"""Bytes of a message of nearly the largest size that servers take by default."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Encode each message both ways, in turns."""
    rng, rows = np.random.default_rng(options.seed), []
    for name, (count, size) in SHAPES.items():
        message = _message(rng, count, size)
        once, pieces, longest = [], [], []
        for _ in range(options.repeat):
            once.append(_cpu_ms(message.SerializeToString))
            pieces.append(_cpu_ms(lambda m=message: encoding.encode(m)))
            longest.append(_longest_ms(message))
        assert index_pb2.UpsertCandidatesRequest.FromString(encoding.encode(message)) == message
        rows.append([name, *_statistics(once), *_statistics(pieces), float(np.median(longest))])
        ratio = float(np.median(pieces) / np.median(once))
        report.gate(f"{name}: pieces cost no more than one call", ratio, ratio <= 1.05)
    header = [
        "message",
        "one call, median ms",
        "p99",
        "in pieces, median ms",
        "p99",
        "longest piece",
    ]
    report.table(f"CPU time of encoding, n = {options.repeat}", header, rows)
    _report_copies(options.repeat, report)


def _report_copies(repeat: int, report: Report) -> None:
    turns = {}
    for keeps in (False, True):  # in a process each: what malloc is told holds from then on
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            turns[keeps] = pool.submit(_copied, repeat, keeps).result()
    names = {False: "mapped anew", True: "kept"}
    rows = [[names[keeps], *_statistics(values)] for keeps, values in turns.items()]
    title = f"longest turn of a loop that answers and receives {COPIED >> 20} MiB, n = {repeat}"
    report.table(title, ["memory", "median ms", "p99"], rows)
    ratio = float(np.median(turns[True]) / np.median(turns[False]))
    report.gate("copies into memory that is kept take half as long", ratio, ratio <= 0.5)


def _copied(repeat: int, keeps: bool) -> list[float]:
    if keeps:
        keep_freed()
    return asyncio.run(_longest_turns(repeat))


async def _longest_turns(repeat: int) -> list[float]:
    """Return the CPU milliseconds of the longest turn in each of so many calls."""
    data = bytes(COPIED)

    async def answer(request: bytes, context: object) -> bytes:
        return data

    unlimited = [("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", {"b": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            start = time.thread_time()
            await asyncio.sleep(0.001)
            longest = max(longest, 1000 * (time.thread_time() - start))

    found = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", unlimited) as channel:
        watching = asyncio.create_task(watch())
        for _ in range(repeat + 2):
            longest = 0.0
            assert len(await channel.unary_unary("/a/b")(b"")) == COPIED
            await asyncio.sleep(0.01)
            found.append(longest)
        watching.cancel()
    await server.stop(None)
    return found[2:]  # the first ones grow the heap


def _message(rng: np.random.Generator, count: int, size: int) -> index_pb2.UpsertCandidatesRequest:
    contents = (Content((Image(rng.bytes(size), "image/png"),)) for _ in range(count))
    candidates = [Candidate(f"c{n}", content) for n, content in enumerate(contents)]
    return index_pb2.UpsertCandidatesRequest(candidates=map(candidate_to_pb, candidates))


def _longest_ms(message: Any) -> float:
    """Return what the dearest piece takes, the copy of a picture; the join holds no GIL."""
    parts = [part for candidate in message.candidates for part in candidate.content.parts]
    return max(_cpu_ms(part.image.ListFields) for part in parts[:5])


def _cpu_ms(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return 1000 * (time.thread_time() - start)


def _statistics(values: list[float]) -> tuple[float, float]:
    return float(np.median(values)), float(np.percentile(values, 99))


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--repeat", type=int, default=15, help="times that each is encoded")
    raise SystemExit(run("large_messages", parser, measure))
