"""A segment's folder: writing it, and reading it with suspicion.

It has `segment.json` (what it is), `index.faiss` (the search structure), `rows.npz` (ids,
attributes and columns) and, for structures that cannot give their vectors back, `vectors.npy`. It
is disposable: the log can always make it again.
"""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import faiss
import numpy as np

from mmesh.errors import DataLoss, StorageFull, Unavailable
from services.index.segments.columns import Columns
from services.index.segments.ids import IdTable
from services.index.segments.strings import Strings
from services.index.segments.structure import Vectors, keeps_vectors

FORMAT = 1
ABOUT, INDEX, ROWS, VECTORS = "segment.json", "index.faiss", "rows.npz", "vectors.npy"


@dataclass(frozen=True, slots=True)
class About:
    """What `segment.json` says."""

    rows: int
    dim: int
    index_factory: str
    nprobe: int = 0
    """Lists (IVF) or graph candidates (HNSW) that a search looks at; 0 for other kinds."""
    depth: int = 0
    """Rows that are scored anew from their vectors, at least."""
    recall: float = 1.0
    """Recall@10 against exact search, measured when the segment was built."""
    build_seconds: float = 0.0
    faiss: str = faiss.__version__
    format: int = FORMAT
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each other file."""


@dataclass(frozen=True, slots=True)
class RowData:
    """What a segment knows of its rows beside their vectors."""

    ids: IdTable
    attributes: Strings
    """JSON of each row; empty without any."""
    columns: Columns


def write_segment(folder: Path, about: About, index: faiss.Index, rows: RowData) -> None:
    """Write a segment but for `vectors.npy` into an existing folder; `segment.json` comes last.

    Raises:
        StorageFull: the disk is full.
        Unavailable: it cannot be written for another cause.
    """
    arrays = {
        **rows.ids.arrays(),
        **rows.columns.arrays(),
        "attributes": rows.attributes.blob,
        "attribute_offsets": rows.attributes.offsets,
    }
    with _writing(folder):
        _write_index(folder / INDEX, index)
        np.savez(folder / ROWS, allow_pickle=False, **arrays)  # type: ignore[arg-type]  # one stub for all
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        (folder / ABOUT).write_text(json.dumps(asdict(replace(about, sizes=sizes))))


def _write_index(path: Path, index: faiss.Index) -> None:
    """Write a search structure through a file of ours.

    FAISS's own file says nothing when the disk is full at its end, and leaves it cut short.
    """
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]  # SWIG's


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what a file system says of a write into our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"the disk is full; segment {folder.name} is not written") from error
        raise Unavailable(f"segment {folder.name} cannot be written: {error.strerror}") from error


def read_about(folder: Path) -> About:
    """Return what a segment says of itself, after a look at the sizes of its files.

    Raises:
        DataLoss: it is incomplete, or of another format.
    """
    try:
        about = About(**json.loads((folder / ABOUT).read_bytes()))
        sizes = about.sizes
        wrong = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataLoss(f"segment {folder.name} cannot be read: {error}") from error
    if about.format != FORMAT:
        raise DataLoss(f"segment {folder.name} has format {about.format}, not {FORMAT}")
    if wrong or not {INDEX, ROWS} <= set(sizes):
        raise DataLoss(f"segment {folder.name} has files of wrong sizes: {wrong}")
    return about


def read_rows(folder: Path, about: About) -> RowData:
    """Return ids, attributes and columns of a segment.

    Raises:
        DataLoss: the file is damaged or fits no `about.rows` rows.
    """
    try:
        with np.load(folder / ROWS, allow_pickle=False) as stored:
            arrays = dict(stored)
        ids = IdTable.from_arrays(arrays)
        attributes = Strings(arrays["attributes"], arrays["attribute_offsets"])
        columns = Columns.from_arrays(about.rows, arrays)
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise DataLoss(f"rows of segment {folder.name} cannot be read: {error}") from error
    if len(ids) != about.rows or len(attributes) != about.rows:
        raise DataLoss(f"segment {folder.name} has {len(ids)} ids for {about.rows} rows")
    return RowData(ids, attributes, columns)


def read_index(folder: Path, about: About, *, mapped: bool = False) -> faiss.Index:
    """Return the search structure of a segment; `mapped` leaves it on the disk where it can.

    Raises:
        DataLoss: the file is damaged or holds other than `about` says.
    """
    flags = faiss.IO_FLAG_MMAP_IFC if mapped else 0
    try:
        index = faiss.read_index(str(folder / INDEX), flags)
    except (RuntimeError, MemoryError) as error:
        raise DataLoss(f"index of segment {folder.name} cannot be read: {error}") from error
    if (index.ntotal, index.d) != (about.rows, about.dim):
        held = f"{index.ntotal} rows of dim {index.d}"
        raise DataLoss(f"index of segment {folder.name} holds {held}")
    return index


def read_vectors(folder: Path, about: About, index: faiss.Index) -> Vectors:
    """Return the vectors of a segment, from its index or its own file for them.

    Raises:
        DataLoss: the file is missing, damaged or of another shape.
    """
    if keeps_vectors(index):
        return Vectors(index)
    try:
        stored = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataLoss(f"vectors of segment {folder.name} cannot be read: {error}") from error
    if stored.shape != (about.rows, about.dim) or stored.dtype != np.float16:
        raise DataLoss(f"vectors of segment {folder.name} have shape {stored.shape}")
    return Vectors(index, stored)
