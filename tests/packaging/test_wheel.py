import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "faiss", "onnxruntime", "vllm", "pydantic", "PIL", "sqlalchemy")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True, timeout=100)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory):
    """An environment with the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=100)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", wheel], check=True, timeout=100)
    return python


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "services/__init__.py" not in names
    assert "mmesh/py.typed" in names
    assert "mmesh/models/encoders/lite/data/lite0.onnx" in names
    assert "mmesh/local/rules/symptoms.yaml" in names
    assert "mmesh/capacity/coefficients.json" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mmesh", "services"}


def test_the_sdk_imports_without_anything_heavy(python, tmp_path):
    code = "import mmesh, sys, json; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.check_output([python, "-c", code], cwd=tmp_path, timeout=60)
    loaded = {name.split(".")[0] for name in json.loads(output)}
    assert "mmesh" in loaded
    assert not loaded & set(HEAVY)


def test_the_command_line_works_without_any_extra(python, tmp_path):
    output = subprocess.check_output([python.parent / "mmesh", "--help"], cwd=tmp_path, text=True)
    assert "ingest" in output
