"""Search structures on the GPU (faiss-gpu) beside the same on the CPU of the same machine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from section import Found, Options, seconds_of

ROWS, DIM, QUERIES, HITS = 1_000_000, 1024, 256, 10


def measure(options: Options, found: Found) -> None:
    """Measure exact and IVF search and building, as the index service does both."""
    try:
        import faiss
    except ImportError:
        found.row("faiss", note="not installed")
        return
    from services.index.build.tuning import automatic_factory
    from services.index.segments import gpu
    from services.index.segments.structure import Structure

    rows = 20_000 if options.small else ROWS
    dim = 64 if options.small else DIM
    vectors, queries = _clustered(options, rows, dim)
    found.row("faiss", version=faiss.__version__, gpus=gpu.devices(), rows=rows, dim=dim)
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    wanted = _search(found, "exact, CPU", Structure(flat), queries)
    if not gpu.devices():
        found.row("faiss on a GPU", note="this FAISS sees none")
    else:
        hits = _search(found, "exact, GPU", Structure(gpu.moved(flat)), queries)
        same = _agreement(wanted, hits)
        found.gate("exact: hits of the GPU are the CPU's", same, same >= 0.9995)
    del flat
    for device in ("cuda", "cpu") if gpu.devices() else ("cpu",):
        factory = automatic_factory(max(rows, 250_000), dim, "cuda")
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        begun = time.perf_counter()
        if device == "cuda":
            gpu.help_training(index)
        sample = vectors[:: max(1, rows // 80_000)]
        index.train(sample)
        trained = time.perf_counter() - begun
        begun = time.perf_counter()
        served = gpu.moved(index) if device == "cuda" else index
        served.add(vectors)
        added = time.perf_counter() - begun
        found.row(f"{factory}, {device}", train_s=trained, add_s=added)
        for effort in (16, 64):
            structure = Structure(served, effort=effort)
            hits = _search(found, f"{factory}, {device}, {effort} lists", structure, queries)
            found.row(f"{factory}, {device}, {effort} lists", recall=_agreement(wanted, hits))
        del index, served


def _clustered(options: Options, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors around 5,000 centres, and queries near some of them."""
    generator = torch.Generator(options.device).manual_seed(options.seed)
    made = {"device": options.device, "generator": generator}
    centres = torch.randn(5_000, dim, **made)
    parts = []
    for count in (*[rows // 10] * 10, QUERIES):
        near = torch.randint(len(centres), (count,), **made)
        parts.append(centres[near] + 0.7 * torch.randn(count, dim, **made))
    unit = [torch.nn.functional.normalize(part, dim=1).cpu().numpy() for part in parts]
    return np.concatenate(unit[:-1]), unit[-1]


def _search(found: Found, name: str, structure: Any, queries: np.ndarray) -> np.ndarray:
    """Measure single queries and batches; return the rows found (m, HITS)."""
    structure.search(queries[:1], HITS)
    singles = []
    for query in queries[:32]:
        begun = time.perf_counter()
        structure.search(query[None], HITS)
        singles.append(time.perf_counter() - begun)
    batch = seconds_of("cpu", lambda: structure.search(queries, HITS), repeats=1)
    found.row(
        name,
        median_ms=1e3 * float(np.median(singles)),
        p99_ms=1e3 * float(np.percentile(singles, 99)),
        queries_per_s_in_batches=len(queries) / batch,
    )
    rows: np.ndarray = structure.search(queries, HITS)[1]
    return rows


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of hits that both have."""
    return float(np.mean([len(set(a) & set(b)) / HITS for a, b in zip(one, other, strict=True)]))
