"""Building one segment of others: what the builder's worker process does.

    echo '{"inputs": [{"folder": "old"}], "output": "new"}' | python -m services.index.build.worker

It keeps at most one float32 block of the rows in memory beside the new segment.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import faiss
import numpy as np
from numpy.typing import NDArray

from mmesh.errors import DataLoss, MmeshError, StorageFull
from mmesh.vectors import FloatMatrix
from services.index.build import tuning
from services.index.segments import bitmap, exact, files, gpu
from services.index.segments.columns import Columns
from services.index.segments.files import About, RowData
from services.index.segments.ids import IdTable
from services.index.segments.strings import concatenate
from services.index.segments.structure import MEASURED_LIMIT, Structure, Vectors, keeps_vectors

RowNumbers = NDArray[np.int64]

SEED = 20_240_229
MIN_SAMPLE_QUERIES, SAMPLE_QUERIES = 400, 1_000
SAMPLE_WORK = 200_000_000
"""Rows times queries, about, that exact search goes through for the sample."""
TRAINING_ROWS_PER_LIST = 50
MIN_TRAINING_ROWS = 20_000
DEFAULT_RECALL = 0.97
GRAPH_BUILD_EFFORT = 80
"""Candidates for the neighbours of a new row in a graph; FAISS's 40 costs recall."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of an existing segment that go into the new one."""

    path: Path
    about: About
    kept: RowNumbers

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Source:
        """Read what an order says of an input."""
        path = Path(entry["folder"])
        about = files.read_about(path)
        bits = bitmap.all_rows(about.rows)
        if entry.get("kept"):
            given = np.fromfile(entry["kept"], np.uint8)
            if len(given) != len(bits):
                raise DataLoss(f"segment {path.name} is given the kept rows of another")
            bits &= given
        return cls(path, about, bitmap.rows_of(bits, about.rows))

    def vectors(self) -> Vectors:
        """Return the vectors of all its rows; they stay on the disk where they can."""
        index = files.read_index(self.path, self.about, mapped=True)
        return files.read_vectors(self.path, self.about, index)


def build(order: Mapping[str, Any]) -> About:
    """Build the segment that an order describes.

    Args:
        order: `inputs`, each with `folder` and perhaps `kept`, a file of packed bits; `output`;
            perhaps `index_factory`, `recall_target`, `device`, `retrain`, and `queries`, a file of
            float32 rows.

    Raises:
        DataLoss: an input is damaged.
    """
    start = time.monotonic()
    sources = [Source.of(entry) for entry in order["inputs"]]
    output = Path(order["output"])
    unfinished = temporary(output)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    about = _build(sources, unfinished, order, start)
    unfinished.rename(output)
    return about


def temporary(output: Path) -> Path:
    """Return where a segment is while it is being written."""
    return output.with_name(output.name + ".unfinished")


def _build(sources: Sequence[Source], path: Path, order: Mapping[str, Any], start: float) -> About:
    rows, dim = sum(len(source.kept) for source in sources), sources[0].about.dim
    exact.prepare(dim)
    device = order.get("device", "cpu")
    factory = tuning.wanted_factory(order.get("index_factory", ""), rows, dim, device)
    index = _trained(factory, sources, dim, device, anew=order.get("retrain", False))
    _add_vectors(index, sources, path, rows)
    structure, vectors = (
        Structure(index),
        files.read_vectors(path, About(rows, dim, factory), index),
    )
    tuned = _tune(structure, vectors, order)
    about = About(
        rows,
        dim,
        factory,
        nprobe=tuned.effort,
        depth=tuned.depth if structure.is_refined else 0,
        recall=round(tuned.recall, 4),
        build_seconds=round(time.monotonic() - start, 3),
    )
    files.write_segment(path, about, index, _row_data(sources))
    return about


def _trained(factory: str, sources: Sequence[Source], dim: int, device: str, *, anew: bool) -> Any:
    """Return an empty structure: that of the largest input of its kind, else a new one.

    An input of less than half of the rows may be unlike the others, and what knows the range of
    numbers alone is trained in no time: then it is a new one, too.
    """
    rows = sum(len(source.kept) for source in sources)
    same = [source for source in sources if source.about.index_factory == factory]
    largest = max(same, key=lambda source: len(source.kept), default=None)
    is_alike = largest is not None and 2 * len(largest.kept) >= rows
    if largest and is_alike and not anew and not factory.startswith("SQ"):
        index = files.read_index(largest.path, largest.about)
        index.reset()
        return index
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        if device != "cpu":
            gpu.help_training(index)
        index.train(_training_rows(factory, sources, dim))
    return _with_graph_effort(index)


def _with_graph_effort(index: Any) -> Any:
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = GRAPH_BUILD_EFFORT
    return index


def _training_rows(factory: str, sources: Sequence[Source], dim: int) -> FloatMatrix:
    lists = tuning.rows_to_train(factory, dim) // tuning.POINTS_PER_CENTROID
    wanted = max(MIN_TRAINING_ROWS, TRAINING_ROWS_PER_LIST * lists)
    rows = sum(len(source.kept) for source in sources)
    return _vectors_at(sources, _sample(rows, wanted))


def _sample(rows: int, wanted: int) -> RowNumbers:
    """Return up to `wanted` different ones of `rows` rows, rising; the same ones every time."""
    chosen = np.random.default_rng(SEED).choice(rows, min(rows, wanted), replace=False)
    return np.sort(chosen)


def _vectors_at(sources: Sequence[Source], places: RowNumbers) -> FloatMatrix:
    """Return the vectors at places in the row of all kept rows."""
    found, first = [], 0
    for source in sources:
        inside = places[(places >= first) & (places < first + len(source.kept))] - first
        found.append(source.vectors().take(source.kept[inside]))
        first += len(source.kept)
    return np.concatenate(found)


def _add_vectors(index: Any, sources: Sequence[Source], path: Path, rows: int) -> None:
    stored, first = None, 0
    if not keeps_vectors(index):
        stored = _new_matrix(path / files.VECTORS, rows, index.d)
    for block in _blocks(sources):
        index.add(block)
        if stored is not None:
            stored[first : first + len(block)] = block
        first += len(block)
    if stored is not None:
        stored.flush()


def _new_matrix(path: Path, rows: int, dim: int) -> Any:
    """Map a new file of float16 rows; its room is taken at once, since a map cannot say ENOSPC."""
    matrix = np.lib.format.open_memmap(path, "w+", np.float16, (rows, dim))  # type: ignore[no-untyped-call]  # numpy 2.3
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return matrix


def _blocks(sources: Sequence[Source]) -> Iterator[FloatMatrix]:
    for source in sources:
        vectors = source.vectors()
        for start in range(0, len(source.kept), exact.BLOCK_ROWS):
            yield vectors.take(source.kept[start : start + exact.BLOCK_ROWS])


def _row_data(sources: Sequence[Source]) -> RowData:
    parts = [(source.kept, files.read_rows(source.path, source.about)) for source in sources]
    attributes = concatenate([rows.attributes.chosen(kept) for kept, rows in parts])
    ids = concatenate([rows.ids.packed.chosen(kept) for kept, rows in parts])
    hashes = np.concatenate([rows.ids.hashes()[kept] for kept, rows in parts])
    return RowData(IdTable.of(ids, hashes), attributes, Columns.of(attributes))


def _tune(structure: Structure, vectors: Vectors, order: Mapping[str, Any]) -> tuning.Tuned:
    """Return what reaches the target for rows and, where there are any, for given queries, too."""
    if structure.is_exact or not structure.index.ntotal:
        return tuning.Tuned(0, 0, 1.0)
    target = order.get("recall_target") or DEFAULT_RECALL
    for_rows = tuning.tune(structure, _row_sample(vectors), target)
    if not order.get("queries"):
        return for_rows
    sample = _query_sample(vectors, order["queries"])
    for_queries = tuning.tune(structure, sample, target)
    effort = max(for_rows.effort, for_queries.effort)
    structure.set_depth(max(for_rows.depth, for_queries.depth))
    recall = float(tuning.recalls_of(structure, sample, effort).mean())
    return tuning.Tuned(effort, structure.depth, recall)


def _row_sample(vectors: Vectors) -> tuning.Sample:
    """Return some rows as queries, with the other rows that exact search finds for them."""
    n = len(vectors.matrix)
    m = max(MIN_SAMPLE_QUERIES, min(SAMPLE_QUERIES, SAMPLE_WORK // n))
    own = _sample(n, m)
    return _sample_of(vectors, vectors.take(own), own)


def _query_sample(vectors: Vectors, path: str) -> tuning.Sample:
    """Return queries from a file, with the rows that exact search finds for them."""
    queries = np.load(path, allow_pickle=False).astype(np.float32)
    return _sample_of(vectors, queries, np.full(len(queries), -1))


def _sample_of(vectors: Vectors, queries: FloatMatrix, own: RowNumbers) -> tuning.Sample:
    rows = np.arange(len(vectors.matrix))
    scores, nearest = exact.search_rows(queries, vectors.take, rows, MEASURED_LIMIT + 2)
    return tuning.sample_of(queries, own, nearest, scores, vectors.take)


def work(orders: TextIO, replies: TextIO) -> None:
    """Build what the lines of `orders` say, and answer each with a line.

    The end of `orders` ends the process at once, also in the middle of an order: whoever gave it is
    gone.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in orders:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        print(json.dumps(_answer(waiting.get())), file=replies, flush=True)


def _answer(line: str) -> dict[str, Any]:
    try:
        about = build(json.loads(line))
    except Exception as error:
        known = isinstance(error, MmeshError)
        message = str(error) if known else f"{type(error).__name__}: {tuning.reason_of(error)}"
        return {"ok": False, "error": message[:2000], "kind": _kind_of(error)}
    return {"ok": True, "rows": about.rows, "recall": about.recall}


def _kind_of(error: Exception) -> str:
    """Return what the builder raises for an error: `damaged`, `full` or `failed`."""
    if isinstance(error, DataLoss):
        return "damaged"
    no_room = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return "full" if no_room or isinstance(error, StorageFull) else "failed"


def main() -> None:
    """Run the worker process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.nice(arguments.nice)
    faiss.omp_set_num_threads(arguments.threads)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed must not be taken for a reply
    work(sys.stdin, replies)


if __name__ == "__main__":
    main()
