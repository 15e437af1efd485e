"""Storing and reading the pictures of one call: one after the other, and at the same time.

The two ways take turns, with new bytes each time, through the same code as in the index. A folder
is on the disk that temporary files are on; S3 is a server on loopback (`make setup-storage`), so
its round trips are shorter than those of a cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from bench import Report, milliseconds, options_of, run

from mmesh.testing.s3 import S3Server, weed_path
from services.index.store.blobs import ContentBlobs, open_blobs
from services.index.store.together import AT_A_TIME, together

Given = TypeVar("Given")
Found = TypeVar("Found")
WAYS = {"one after the other": 1, "together": AT_A_TIME}
FASTER = {"folder": 2.0, "S3": 1.0}
"""Times that storing together must be as fast; on loopback S3 has nothing to be waited for."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread, since disks are waited for there."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="mmesh-bench-") as folder, _stores(folder) as stores:
        for place, blobs in stores.items():
            seconds = _seconds(blobs, options)
            for (work, way), found in seconds.items():
                rows.append([place, work, way, *milliseconds(found), len(found)])
            alone, both = (float(np.median(seconds["store", way])) for way in WAYS)
            faster = FASTER[place]
            rule = f"{place}: storing together at least {faster:g} times as fast"
            report.gate(rule, alone / both, alone / both >= faster)
    title = f"{options.pictures} pictures of {options.kilobytes} KB"
    report.table(title, ["place", "work", "way", "median ms", "p99 ms", "n"], rows)


@contextmanager
def _stores(folder: str) -> Iterator[dict[str, ContentBlobs]]:
    here = {"folder": open_blobs(Path(folder, "blobs"))}
    if weed_path() is None:
        yield here
        return
    with S3Server(Path(folder)) as server:
        os.environ |= server.environment
        yield here | {"S3": open_blobs(server.url("blobs"))}


def _seconds(
    blobs: ContentBlobs, options: argparse.Namespace
) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for way, width in WAYS.items():
            new = [os.urandom(1000 * options.kilobytes) for _ in range(options.pictures)]
            with ThreadPoolExecutor(width) as pool:
                names = _timed(found["store", way], pool, blobs.put, new)
                assert _timed(found["read", way], pool, blobs.get, names) == new
    return found


def _timed(
    seconds: list[float],
    pool: ThreadPoolExecutor,
    work: Callable[[Given], Found],
    items: list[Given],
) -> list[Found]:
    begun = time.perf_counter()
    answers = together(pool, work, items, lambda _: True)
    seconds.append(time.perf_counter() - begun)
    return answers


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--pictures", type=int, default=64, help="of a call")
    parser.add_argument("--kilobytes", type=int, default=30, help="of a picture")
    parser.add_argument("--rounds", type=int, default=10)
    return run("blobs", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
