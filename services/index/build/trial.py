"""Trial builds: whether FAISS can build a structure and find anything with it, on a few rows.

FAISS's factory accepts strings that abort or kill the process that builds them, that ask for all
memory there is, or that find nothing right. No rule says which, so each is tried before a
collection may have it: in a process of its own, with limits of memory and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from typing import Any

import faiss
import numpy as np
from cachetools import LRUCache

from mmesh.errors import InvalidField, Overloaded
from mmesh.vectors import FloatMatrix
from services.index.build.tuning import check_factory, reason_of
from services.index.segments import exact
from services.index.segments.structure import Structure

PATH = "settings.index_factory"
CLUSTERS, CLUSTER_ROWS = 64, 16
SPREAD = 0.3
"""Distance of rows to the middle of their cluster, on the unit sphere."""
LEAST_SHARE = 0.05
"""Share of the rows found that must be of the query's cluster; any rows at all would give 0.016."""
EXACT_SHARE = 0.5
"""In a few dimensions exact search does not keep clusters apart; then nothing is expected."""
FOUND = 10
TRIED_LISTS, TRIED_BITS = 16, 8
"""What is trained with many rows is tried with few: its size is checked by `check_factory`."""
MEMORY_BYTES = 4 << 30
CPU_S = 30
PATIENCE_S = 120.0
MOST_WAITING = 8
KEPT = 256
"""Structures that are known to be good."""


class Trials:
    """Tries structures, one at a time, and remembers the good ones."""

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES, cpu_s: int = CPU_S) -> None:
        self._limits = (str(memory_bytes), str(cpu_s))
        self._cpu_s = cpu_s
        self._turn, self._waiting = asyncio.Lock(), 0
        self._good: LRUCache[tuple[str, int], None] = LRUCache(KEPT)

    async def check(self, index_factory: str, dim: int) -> None:
        """Return if a collection of this dim may have the structure; the empty string may be.

        Raises:
            InvalidField: it is not offered, cannot be built, or finds nothing.
            Overloaded: too many trials wait.
        """
        check_factory(index_factory, dim)
        if not index_factory or (index_factory, dim) in self._good:
            return
        if self._waiting >= MOST_WAITING:
            raise Overloaded("other index factories are being tried")
        self._waiting += 1
        try:
            async with self._turn:
                problem = await self._try(index_factory, dim)
        finally:
            self._waiting -= 1
        if problem:
            raise InvalidField(PATH, problem)
        self._good[index_factory, dim] = None

    async def _try(self, index_factory: str, dim: int) -> str:
        """Return what is wrong with a structure, or nothing."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", __name__, *self._limits, index_factory, str(dim)),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                said, _ = await process.communicate()
        except TimeoutError:
            return f"takes over {PATIENCE_S:g} s to build for a few rows"
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(ValueError):
            return str(json.loads(said)["problem"])
        if process.returncode == -signal.SIGXCPU:
            return f"takes over {self._cpu_s} s to build for a few rows of dim {dim}"
        return f"cannot be built for dim {dim}: it ended its builder"


def problem_of(index_factory: str, dim: int) -> str:
    """Build the structure of a few rows, and return what is wrong with it, or nothing."""
    rows = _clustered(dim)
    try:
        index = _built(_smaller(index_factory), rows)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            return "is for Euclidean distances only; scores are inner products"
        index = faiss.deserialize_index(faiss.serialize_index(index))
        share = _share_found(Structure(index), rows)
    except MemoryError:
        return f"needs too much memory for a few rows of dim {dim}"
    except Exception as error:  # FAISS raises all kinds
        return f"cannot be built for dim {dim}: {reason_of(error)}"
    flat = faiss.IndexFlatIP(dim)
    flat.add(rows)
    if share < LEAST_SHARE and _share_found(Structure(flat), rows) > EXACT_SHARE:
        return f"finds next to nothing for dim {dim}"
    return ""


def _smaller(index_factory: str) -> str:
    """Return the structure with fewer lists and shorter codes, which few rows can train."""

    def lists(found: re.Match[str]) -> str:
        return f"IVF{min(int(found[1]), TRIED_LISTS)}"

    def codes(found: re.Match[str]) -> str:
        return f"{found[1]}x{min(int(found[2]), TRIED_BITS)}"

    return re.sub(r"(?<!O)(PQ\d+)x(\d+)", codes, re.sub(r"IVF(\d+)", lists, index_factory))


def _built(index_factory: str, rows: FloatMatrix) -> Any:
    index: Any = faiss.index_factory(rows.shape[1], index_factory, faiss.METRIC_INNER_PRODUCT)
    _train_less(index)
    index.train(rows)
    index.add(rows)
    return index


def _train_less(index: Any) -> None:
    """Leave out what only makes codes better: learning rotations, and the order of codes."""
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    steps: list[Any] = []
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        steps = [faiss.downcast_VectorTransform(chain.at(n)) for n in range(chain.size())]
        index = faiss.downcast_index(index.index)
    for step in steps:
        if isinstance(step, faiss.OPQMatrix):
            step.niter = 0
        elif isinstance(step, faiss.ITQTransform):
            step.itq.max_iter = 2
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False


def _clustered(dim: int) -> FloatMatrix:
    """Return unit rows around random middles, those of a cluster together."""
    random = np.random.default_rng(0)
    middles = random.normal(size=(CLUSTERS, 1, dim))
    middles /= np.linalg.norm(middles, axis=2, keepdims=True)
    noise = random.normal(size=(CLUSTERS, CLUSTER_ROWS, dim)) * SPREAD / np.sqrt(dim)
    rows = (middles + noise).reshape(-1, dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows, np.float32)


def _share_found(structure: Structure, rows: FloatMatrix) -> float:
    """Return how many of the rows found are of the cluster of the query, which is a row itself."""
    effort = max(1, structure.max_effort)
    _, found = structure.search(rows, FOUND + 1, effort=effort)
    own = np.arange(len(rows))[:, None]
    others = found != own
    alike = (found // CLUSTER_ROWS == own // CLUSTER_ROWS) & others & (found >= 0)
    return float(alike.sum() / max(1, others.sum()))


def main() -> None:
    """Run a trial: `trial MEMORY_BYTES CPU_SECONDS INDEX_FACTORY DIM`; print what is wrong."""
    memory_bytes, cpu_s, index_factory, dim = sys.argv[1:]
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), resource.RLIM_INFINITY))
    exact.single_threaded()
    print(json.dumps({"problem": problem_of(index_factory, int(dim))}))


if __name__ == "__main__":
    main()
