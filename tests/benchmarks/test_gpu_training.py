"""The script that measures training on GPUs runs whole on a CPU, at tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytestmark = [pytest.mark.training, pytest.mark.models, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]


def test_each_batch_is_measured_whole_and_in_chunks(tmp_path) -> None:
    """Costs 15 s, most of it the import of torch."""
    command = [
        sys.executable, str(ROOT / "benchmarks/gpu/training.py"), "--device", "cpu", "--small",
        "--seconds", "0.1", "--batches", "4", "8", "--chunks", "0", "3",
        "--gradient-checkpointing", "--out", str(tmp_path),
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu_training.json").read_text())["rows"]
    names = [row["what"] for row in rows]
    assert names == [
        "parameters",
        "batch 4, chunk whole",
        "batch 4, chunk 3",
        "batch 8, chunk whole",
        "batch 8, chunk 3",
    ]
    assert all(row["pairs_per_s"] > 0 and row["mfu"] > 0 for row in rows[1:])
    assert 0 < rows[0]["train"] < rows[0]["of"]
