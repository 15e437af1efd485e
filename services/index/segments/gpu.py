"""Search structures on a GPU, where FAISS was built for one."""

from __future__ import annotations

import functools
import threading
from typing import Any

import faiss

_untyped: Any = faiss
"""FAISS without GPU support has none of the classes used here."""

MAX_LIMIT = 2_048
"""Hits and lists that a GPU index can be asked for."""


turn = threading.Lock()
"""Held by whoever searches on the GPU: its indexes share memory and serve one thread at a time."""


def devices() -> int:
    """Return how many GPUs FAISS can use; 0 for a FAISS without GPU support."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def moved(index: Any) -> Any:
    """Return a copy of `index` on the first GPU, or `index` itself where no GPU can search it.

    Flat indexes and those of plain lists can be moved; fast-scan codes, graphs and refining stages
    have no twin on a GPU. Searches of what is returned must hold `turn`.
    """
    if not devices():
        return index
    try:  # element types stay: what is exact on a CPU is exact on a GPU
        return _untyped.index_cpu_to_gpu(_resources(), 0, index)
    except RuntimeError:
        return index


def is_on_gpu(index: Any) -> bool:
    """Whether an index lives on a GPU."""
    return bool(devices()) and isinstance(index, _untyped.GpuIndex)


def has_lists(index: Any) -> bool:
    """Whether an index lives on a GPU and searches only some of its lists (IVF)."""
    return is_on_gpu(index) and isinstance(index, _untyped.GpuIndexIVF)


def help_training(index: Any) -> None:
    """Let the first GPU, if any, place the centroids of an index that has lists."""
    try:
        lists = faiss.extract_index_ivf(index)
    except RuntimeError:  # it has none
        return
    if devices():
        flat = faiss.IndexFlatIP(lists.d)
        lists.clustering_index = _untyped.index_cpu_to_gpu(_resources(), 0, flat)


@functools.cache
def _resources() -> Any:
    """Return the one object that owns FAISS's memory on the GPU."""
    return _untyped.StandardGpuResources()
