"""`mmesh rerank check` and `mmesh encode check` against running services."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def check(command_here, mesh, tmp_path):
    """Run `mmesh WHAT check`; return exit code, stdout and stderr."""

    def check(what, *arguments, data=mesh.settings.data, command=command_here):
        options = ("check", "--data", data, *arguments)
        return command(what, *options, env=ENVIRONMENT, folder=tmp_path)

    return check


def shift(file, amount):
    """Add to the first number of every stored answer."""
    with np.load(file) as stored:
        changed = {name: np.array(stored[name]) for name in stored}
    for name in changed.keys() - {"source"}:
        changed[name][0] += amount
    np.savez(file, **changed)


@pytest.mark.parametrize("what", ["rerank", "encode"])
def test_a_service_agrees_with_itself_until_what_is_stored_changes(check, tmp_path, what):
    file = tmp_path / "answers.npz"
    code, output, errors = check(what, "--save", file)
    assert code == 0, errors
    assert "picture and text" in output
    assert "largest difference" in output
    code, output, errors = check(what, "--stored", file, "--json")
    assert code == 0, errors
    found = json.loads(output)
    assert found["max_abs_diff"] < 1e-4
    assert all(probe["reference"] < 1e-4 for probe in found["probes"])
    shift(file, 0.01)
    code, output, _ = check(what, "--stored", file, "--json")
    assert code == 1
    assert json.loads(output)["max_abs_diff"] == pytest.approx(0.01, abs=1e-4)
    assert check(what, "--stored", file, "--tolerance", "0.02")[0] == 0


def test_an_encoder_is_compared_with_the_same_model_in_this_process(check):
    code, output, errors = check("encode", "--reference", "lite", "--json")
    assert code == 0, errors
    assert all(probe["reference"] < 1e-4 for probe in json.loads(output)["probes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "127.0.0.1:1"], "UNAVAILABLE"),
        (["--data", "nowhere"], "--address"),
        (["--reference", "x", "--stored", __file__], "not both"),
        (["--stored", __file__], "no stored answers"),
        (["--stored", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_checked_is_one_line(check, arguments, said):
    code, _, errors = check("rerank", *arguments)
    assert code in (1, 2)
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is absent: run `make setup-models`"
)
def test_a_model_that_is_not_there_is_one_line(check, command_as_program):
    """A program of its own: what loads models reads its environment once."""
    code, _, errors = check("rerank", "--reference", "no such folder", command=command_as_program)
    assert code in (1, 2)
    assert "no such folder" in errors
    assert "Traceback" not in errors
