"""What the README shows works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_ten_lines_of_python_run(client, run_block, blocks_of):
    (code,) = [text for language, text in blocks_of(ROOT / "README.md") if language == "python"]
    try:
        printed = run_block("python", code)
    finally:
        client.delete_collection("notes")
    assert [line.split()[:2] for line in printed.splitlines()] == [["1", "kitten"], ["2", "rocket"]]


def test_every_command_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
    shown = set(re.findall(r"^mmesh ([a-z]+)", README, re.MULTILINE))
    help_text = subprocess.check_output(
        [sys.executable, "-c", "from mmesh.cli import main; main()", "--help"], text=True
    )
    assert shown
    assert all(re.search(rf"^  {command} ", help_text, re.MULTILINE) for command in shown)
