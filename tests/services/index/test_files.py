"""Segments on a disk that is full, or that cannot be written."""

import numpy as np
import pytest

from mmesh.errors import DataLoss, StorageFull, Unavailable
from services.index.build import worker
from services.index.segments import files
from services.index.segments.delta import Delta
from services.index.segments.ids import hashes_of

DIM = 16
FEW, MANY = 10, 20_000
"""Rows that fit into a buffer, so that the disk is asked at the very end, and rows that do not."""


def delta_of(rows):
    delta = Delta(DIM, rows)
    ids = [f"id{n}" for n in range(rows)]
    vectors = np.eye(DIM, dtype=np.float32)[np.arange(rows) % DIM]
    delta.append_many(ids, hashes_of(ids), [""] * rows, vectors)
    return delta


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("name", [files.INDEX, files.ROWS, files.ABOUT])
def test_a_full_disk_is_told_whichever_file_it_stops(tmp_path, name, rows):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(StorageFull, match="the disk is full"):
        delta_of(rows).save(tmp_path)


def test_a_folder_that_is_gone_is_told_too(tmp_path):
    with pytest.raises(Unavailable, match="cannot be written"):
        delta_of(FEW).save(tmp_path / "gone")


KINDS = [
    (StorageFull("full"), "full"),
    (OSError(28, "No space left on device"), "full"),
    (DataLoss("damaged"), "damaged"),
    (OSError(5, "Input/output error"), "failed"),
    (RuntimeError("FAISS"), "failed"),
    (MemoryError(), "failed"),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda one: str(one) or "MemoryError")
def test_the_builder_hears_what_kind_of_failure_it_was(error, kind):
    assert worker._kind_of(error) == kind
