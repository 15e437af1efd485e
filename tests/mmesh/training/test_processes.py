"""Processes that share the batches of a run train what one process trains.

Costs 25 s, most of it imports of torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is absent: run `make setup-training`")

from mmesh.testing.tiny_models import build_tiny_clip  # noqa: E402
from mmesh.training.errors import TrainingError  # noqa: E402
from mmesh.training.loop import read_losses  # noqa: E402
from mmesh.training.processes import joined  # noqa: E402

pytestmark = [pytest.mark.training, pytest.mark.models, pytest.mark.timeout(300)]
RECIPE = """
model = "{model}"
out = "{out}"
name = "trained"
threads = 1
[data.pairs]
path = "pairs.jsonl"
[held_out.same]
path = "held.jsonl"
[[stages]]
name = "one"
data = {{ pairs = 1 }}
steps = 3
batch = 10
chunk = {chunk}
learning_rate = 0.003
checkpoint_every = 2
[[stages]]
name = "two"
begin = "one"
data = {{ pairs = 1 }}
steps = 2
batch = 7
mine = true
negatives = 1
learn_temperature = true
"""
PROGRAM = [sys.executable, "-c", "from mmesh.cli import main; main()", "train"]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]


def test_two_processes_train_what_one_trains(pairs_file, tmp_path) -> None:
    """Gradients are sums over shares that differ in length, and in order only."""
    pairs_file(24)
    pairs_file(30, "held.jsonl", instruction="Find it.")
    model = build_tiny_clip(tmp_path / "clip")
    for out, chunk, launcher in (
        ("alone", 0, []),
        ("shared", 4, [*LAUNCHER, "--nproc-per-node", "2"]),
    ):
        recipe = tmp_path / f"{out}.toml"
        recipe.write_text(RECIPE.format(model=model, out=out, chunk=chunk))
        done = subprocess.run(
            [*launcher, *PROGRAM, str(recipe)],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("serve it: ") == 1
    for stage in ("one", "two"):
        alone, shared = (_steps(tmp_path / out / "work" / stage) for out in ("alone", "shared"))
        assert len(alone) == len(shared) > 1
        for one, other in zip(alone, shared, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    base, alone, shared = (
        _weights(tmp_path / folder) for folder in ("alone/base", "alone/trained", "shared/trained")
    )
    changed, apart = (
        sum(float((one[name] - base[name]).square().sum()) for name in base)
        for one, base in ((alone, base), (shared, alone))
    )
    assert apart < 1e-4 * changed  # of the squares: Adam magnifies what rounding does to small ones
    rows = [
        json.loads((tmp_path / out / "results.json").read_text()) for out in ("alone", "shared")
    ]
    assert [row["stage"] for row in rows[1]] == ["base", "one", "two"]
    assert all(row["figures"] for row in rows[1])
    states = sorted((tmp_path / "shared/work/one").glob("step-*.pt"))
    assert len(torch.load(states[-1], weights_only=True)["random"]) == 2


def _steps(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in step.items() if name != "seconds"}
        for step in read_losses(folder)
    ]


def _weights(folder: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_processes_that_would_share_one_gpu_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(TrainingError, match="cannot share cuda:0"), joined("cuda:0"):
        pass
