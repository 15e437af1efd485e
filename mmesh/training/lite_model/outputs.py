"""Writing arrays so that equal arrays are equal files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The earliest date that a ZIP archive can hold; the real one would change the file's hash.
_DATE = (1980, 1, 1, 0, 0, 0)


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as a compressed `.npz` file without dates."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, values, allow_pickle=False)  # type: ignore[no-untyped-call]  # numpy 2.3
            entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())
