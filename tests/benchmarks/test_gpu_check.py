"""The script that measures GPUs runs whole on a CPU; costs about 55 s."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.models,
    pytest.mark.timeout(700),
    pytest.mark.skipif(
        importlib.util.find_spec("sentence_transformers") is None,
        reason="sentence-transformers is absent: run `make setup-models`",
    ),
]
SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/check.sh"
NEEDS_A_COMPILER = "compiling-2b"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), "--device", "cpu", "--small", "--out", str(folder), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gpu")
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from check import SECTIONS  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(SCRIPT.parent))
    wanted = [name for name in SECTIONS if name != NEEDS_A_COMPILER or shutil.which("g++")]
    done = run(folder, "--seconds", "0.2", "--only", *wanted)
    assert "stored gpu_check.json" in done.stdout, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text())
    assert list(found["sections"]) == wanted
    return found


def test_every_section_measures_something(report: dict[str, Any]) -> None:
    for name, section in report["sections"].items():
        assert section["error"] is None, name
        assert section["rows"], name


def test_versions_and_machine_are_told(report: dict[str, Any]) -> None:
    assert {"python", "torch", "transformers", "commit"} <= report["versions"].keys()
    assert report["machine"]["cores"] == os.cpu_count()


def test_vectors_do_not_depend_on_the_batch(report: dict[str, Any]) -> None:
    gates = [gate for section in report["sections"].values() for gate in section["gates"]]
    parity = [gate for gate in gates if "changes in a batch" in gate["rule"]]
    assert len(parity) == 5
    assert all(gate["passed"] for gate in parity), parity


def test_what_is_served_is_what_was_sent(report: dict[str, Any]) -> None:
    """Small models on a CPU say nothing of speed, but all kinds of input must get through."""
    rows = [row for section in report["sections"].values() for row in section["rows"]]
    served = {row["what"]: row for row in rows if row["what"].endswith(" served")}
    assert len(served) == 4 + 4 + 2 + 2
    assert not {what: row for what, row in served.items() if not row["inputs_per_s"] > 0}
    packed = [row for what, row in served.items() if what.startswith("qwen")]
    assert all(row["padding"] == 0 for row in packed)


def test_a_section_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cuda:9", "--only", "memory", "faiss", "--seconds", "0.1")
    found = json.loads((tmp_path / "gpu_check.json").read_text())["sections"]
    assert done.returncode == 1
    assert "cuda:9" in found["memory"]["error"]
    assert found["faiss"]["error"] is not None
