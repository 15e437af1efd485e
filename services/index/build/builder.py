"""Building segments in a separate process, of low priority: the owner of that process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from mmesh.errors import DataLoss, InternalError, MmeshError, StorageFull
from mmesh.vectors import FloatMatrix
from services.index.build.worker import DEFAULT_RECALL, main, temporary
from services.index.segments import files

logger = logging.getLogger(__name__)


class BuildFailed(InternalError):
    """A segment could not be built; its inputs are untouched."""


_ERRORS: Mapping[str, type[MmeshError]] = {
    "damaged": DataLoss,
    "full": StorageFull,
    "failed": BuildFailed,
}
"""By kind of failure, as the worker says it."""


@dataclass(frozen=True, slots=True)
class Input:
    """A segment that goes into another."""

    folder: Path
    kept: bytes | None = None
    """Rows to take, as from `Segment.alive_bits`; all when None."""


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What to build of what."""

    inputs: tuple[Input, ...]
    """At least one; the new segment has their rows in this order, so ids must differ."""
    output: Path
    """The new segment's folder, which must not exist."""
    index_factory: str = ""
    """FAISS factory string; chosen by the number of rows when empty."""
    recall_target: float = DEFAULT_RECALL
    """Recall@10 that the segment's searches should reach."""
    device: str = "cpu"
    """`cpu`; `cuda-build`: a GPU, if there is one, helps to train; `cuda`: it will serve, too, so
    that the automatic choice is a structure that a GPU can search."""
    retrain: bool = False
    """Train anew, whatever the inputs have learned."""
    queries: FloatMatrix | None = None
    """Queries (m, dim) like those to come, to measure recall with; rows stand in for them."""


class Patience(NamedTuple):
    """How long a build may take before its process is taken for hung, and ended."""

    least_s: float
    value_s: float
    """For each number of the vectors, rows times dim."""


PATIENCE = Patience(least_s=600.0, value_s=2e-5)
"""About ten times what a build takes, of a graph on a busy core: for a million rows of 384 numbers,
2.3 hours."""


class Builder:
    """Builds one segment at a time in a worker process, which it starts anew when it died.

    Use it as an async context manager: leaving it ends the worker. The worker also ends by itself
    as soon as this process is gone.
    """

    def __init__(
        self, *, nice: int, threads: int, scratch: Path, patience: Patience = PATIENCE
    ) -> None:
        """Remember how to start the worker.

        Args:
            nice: how much lower than this process's the worker's priority is, 0 to 19.
            threads: cores that it may use.
            scratch: a folder for what goes into orders; made when missing.
            patience: how long a build may take.
        """
        self._arguments = ("--nice", str(nice), "--threads", str(threads))
        self._threads, self._scratch = threads, scratch
        self._patience = patience
        self._turn = asyncio.Lock()
        self._worker: Process | None = None
        self._complaints: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Builder:
        """Return itself; the worker starts with the first order."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the worker."""
        await self._end_worker()

    async def build(self, order: BuildOrder) -> Path:
        """Build a segment and return its folder; cancelling ends the worker and its work.

        Raises:
            BuildFailed: the worker died, met an error, or took far longer than such a build takes.
            DataLoss: an input is damaged.
            StorageFull: the disk is full.
        """
        async with self._turn:
            scratch = await asyncio.to_thread(self._new_folder)
            try:
                line = await asyncio.to_thread(_line_of, order, scratch)
                reply = await self._finished(order, line)
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        if reply["ok"]:
            return order.output
        raise _ERRORS[reply["kind"]](reply["error"])

    def _limit_s(self, values: int) -> float:
        return self._patience.least_s + self._patience.value_s * values

    def _new_folder(self) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._scratch))

    async def _finished(self, order: BuildOrder, line: bytes) -> dict[str, Any]:
        reply: dict[str, Any] | None = None
        limit_s = self._limit_s(await asyncio.to_thread(_values_in, order.inputs))
        try:
            async with asyncio.timeout(limit_s):
                reply = await self._ask(line)
            return reply
        except TimeoutError:
            raise BuildFailed(f"the builder took over {limit_s:.0f} s and was ended") from None
        finally:
            if reply is None:
                await self._end_worker()
            if reply is None or not reply["ok"]:
                await asyncio.to_thread(shutil.rmtree, temporary(order.output), ignore_errors=True)

    async def _ask(self, line: bytes) -> dict[str, Any]:
        worker = await self._running_worker()
        assert worker.stdin is not None
        assert worker.stdout is not None
        with contextlib.suppress(ConnectionError):  # then there is no reply, either
            worker.stdin.write(line)
            await worker.stdin.drain()
        answer = await worker.stdout.readline()
        if not answer:
            raise BuildFailed(f"the builder's process ended with code {await worker.wait()}")
        reply: dict[str, Any] = json.loads(answer)
        return reply

    async def _running_worker(self) -> Process:
        if self._worker is None or self._worker.returncode is not None:
            await self._end_worker()
            self._worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", __name__, *self._arguments),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(self._threads),
                    "OMP_WAIT_POLICY": "PASSIVE",
                },
            )
            self._complaints = asyncio.create_task(_log_lines(self._worker))
        return self._worker

    async def _end_worker(self) -> None:
        worker, complaints = self._worker, self._complaints
        self._worker = self._complaints = None
        if worker is not None:
            _kill(worker)
            await worker.wait()
        if complaints is not None:
            await complaints  # ends with the process


async def _log_lines(worker: Process) -> None:
    """Log what the worker says besides replies; one that nobody listens to would stand still."""
    assert worker.stderr is not None
    try:
        while chunk := await worker.stderr.read(4096):
            for line in chunk.decode(errors="replace").splitlines():
                logger.warning("builder said", extra={"line": line})
    except Exception:  # its orders fail, and the next one starts another
        logger.exception("the builder is not heard any more")
    finally:
        _kill(worker)


def _kill(worker: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()


def _values_in(inputs: Sequence[Input]) -> int:
    """Return how many numbers the vectors of the inputs have; 0 for what cannot be read."""
    values = 0
    for given in inputs:
        with contextlib.suppress(DataLoss):  # the worker says so
            about = files.read_about(given.folder)
            values += about.rows * about.dim
    return values


def _line_of(order: BuildOrder, scratch: Path) -> bytes:
    """Return an order as a line for the worker; what is large goes into files."""
    inputs = []
    for number, given in enumerate(order.inputs):
        entry = {"folder": str(given.folder.absolute())}
        if given.kept is not None:
            kept = scratch / f"kept{number}"
            kept.write_bytes(given.kept)
            entry["kept"] = str(kept.absolute())
        inputs.append(entry)
    fields: dict[str, Any] = {
        "inputs": inputs,
        "output": str(order.output.absolute()),
        "index_factory": order.index_factory,
        "recall_target": order.recall_target,
        "retrain": order.retrain,
        "device": order.device,
    }
    if order.queries is not None:
        queries = scratch / "queries.npy"
        np.save(queries, order.queries)
        fields["queries"] = str(queries.absolute())
    return json.dumps(fields).encode() + b"\n"


if __name__ == "__main__":
    main()
