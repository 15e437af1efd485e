"""`mmesh train` as a process, on a tiny CLIP: killed at any moment, it goes on as if it never was.

Costs 20 s, most of it the import of torch, three times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is absent: run `make setup-training`")

from tests.effort import patient

pytestmark = [pytest.mark.training, pytest.mark.models, pytest.mark.timeout(400)]
COMMAND = [sys.executable, "-c", "from mmesh.cli import main; main()", "train"]
RECIPE = """
model = "tiny"
out = "{out}"
name = "tiny-trained"
seed = 4
threads = 1
[data.pairs]
path = "pairs.jsonl"
[held_out.pairs]
path = "held.jsonl"
[[stages]]
name = "first"
data = {{ pairs = 1 }}
steps = 10
batch = 8
checkpoint_every = 4
[[stages]]
name = "second"
begin = "first"
data = {{ pairs = 1 }}
steps = 60
batch = 8
chunk = 5
mine = true
negatives = 1
learning_rate = 2e-3
learn_temperature = true
checkpoint_every = 5
"""


@pytest.fixture
def folder(tmp_path, pairs_file) -> Path:
    from mmesh.testing.tiny_models import build_tiny_clip

    build_tiny_clip(tmp_path / "tiny")
    for name in ("pairs", "held"):
        pairs_file(40, f"{name}.jsonl", instruction="Find it.")
    for out in ("whole", "killed"):
        (tmp_path / f"{out}.toml").write_text(RECIPE.format(out=out))
    return tmp_path


def train(folder: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, f"{name}.toml"],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200"},
    )


def steps_done(folder: Path) -> int:
    path = folder / "killed/work/second/steps.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_run_that_was_killed_ends_with_the_same_model(folder) -> None:
    whole = train(folder, "whole")
    killed = train(folder, "killed")
    until = time.monotonic() + patient(120)
    while steps_done(folder) < 18:
        assert killed.poll() is None, killed.stdout.read()  # type: ignore[union-attr]
        assert time.monotonic() < until
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert steps_done(folder) < 60
    again = train(folder, "killed")
    for process in (whole, again):
        said, _ = process.communicate(timeout=patient(200))
        assert process.returncode == 0, said
    assert "first: done before" in said
    assert "tiny-trained" in said
    rows = [json.loads((folder / out / "results.json").read_text()) for out in ("whole", "killed")]
    assert rows[0] == rows[1]
    weights = [
        (folder / out / "tiny-trained/model.safetensors").read_bytes()
        for out in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    base = (folder / "whole/base/model.safetensors").read_bytes()
    assert base != weights[0]
    assert base == (folder / "tiny/model.safetensors").read_bytes()
