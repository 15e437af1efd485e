"""How long a large message holds the event loop: protobuf's one call beside encoding in pieces.

The CPU time of a thread is counted, and the longest piece, since the GIL is held for so long.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import Report, options_of, run

from mmesh.api.index.v1 import index_pb2
from mmesh.candidates import Candidate
from mmesh.content import Content, Image
from mmesh.wire import candidate_to_pb, encoding

SHAPES = {"60 pictures of 1 MiB": (60, 1 << 20), "3 of 20 MiB": (3, 20 << 20),
          "250 of 100 KiB": (250, 100 << 10)}  # fmt: skip


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


def _message(rng: np.random.Generator, count: int, size: int) -> index_pb2.UpsertCandidatesRequest:
    contents = (Content((Image(rng.bytes(size), "image/png"),)) for _ in range(count))
    candidates = [Candidate(f"c{n}", content) for n, content in enumerate(contents)]
    return index_pb2.UpsertCandidatesRequest(candidates=map(candidate_to_pb, candidates))


def _longest_ms(message: Any) -> float:
    """Return what the dearest single call of `encode` takes: a candidate's part, or the join."""
    parts = [part for candidate in message.candidates for part in candidate.content.parts]
    encoded = [part.image.SerializeToString() for part in parts]
    dearest = max(_cpu_ms(part.image.SerializeToString) for part in parts[:5])
    return max(dearest, _cpu_ms(lambda: b"".join(encoded)))


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
