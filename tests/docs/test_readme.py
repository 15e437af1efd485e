"""What the README shows works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_ten_lines_of_python_run(mesh, client):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"MMESH_TARGET_ADDRESS": mesh.address},
        timeout=60,
        check=False,
    )
    client.delete_collection("notes")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["1", "kitten"],
        ["2", "rocket"],
    ]


def test_every_command_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
    shown = set(re.findall(r"^mmesh ([a-z]+)", README, re.MULTILINE))
    help_text = subprocess.check_output(
        [sys.executable, "-c", "from mmesh.cli import main; main()", "--help"], text=True
    )
    assert shown
    assert all(re.search(rf"^  {command} ", help_text, re.MULTILINE) for command in shown)


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
