"""Runs the blocks of a page as its reader would, and compares what is printed with the page."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmesh import Client, Consistency

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d+")
TOLERANCE = 0.02
"""How far a score may be from the page's: another processor rounds otherwise."""
Block = tuple[str, str]


def find_blocks(page: Path) -> list[Block]:
    return FENCE.findall(page.read_text("utf-8"))


def is_as_shown(shown: str, printed: str) -> bool:
    """Tell whether an output says what the page says, but for times and line breaks."""
    expected, got = _words(shown), _words(printed)
    return len(expected) == len(got) and all(map(_is_alike, expected, got))


def _words(text: str) -> list[str]:
    text = re.sub(r"\d+ ms", "some ms", text)
    return re.sub(r"shards (\d+)/\1\b", "all shards", text).split()


def _is_alike(shown: str, printed: str) -> bool:
    if NUMBER.fullmatch(shown) and NUMBER.fullmatch(printed):
        return abs(float(shown) - float(printed)) <= TOLERANCE
    return shown == printed


class Reader:
    """Runs blocks in a folder of its own, against a mesh that is up."""

    def __init__(self, folder: Path, client: Client) -> None:
        self._folder, self._client = folder, client

    def run_block(self, language: str, text: str) -> str:
        """Return what a block prints."""
        if language == "sh":
            return "".join(map(self._run_line, _commands_in(text)))
        return self._run([sys.executable, "-c", text])

    def _run_line(self, line: str) -> str:
        command = shlex.split(line, comments=True)
        if command[:2] == ["mmesh", "up"]:  # the tests' mesh is up; tests/mmesh/cli starts others
            return "ready 127.0.0.1:50550\n"
        if command[0] != "mmesh":
            return self._run(["bash", "-ec", line])
        printed = _run_mmesh(command)
        if command[1] == "ingest":  # a person's next command comes when all shards have applied it
            self._client.search(command[2], "all", consistency=Consistency.STRONG)
        return printed

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self._folder, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _commands_in(text: str) -> Iterator[str]:
    """Yield commands: lines with those that continue them, and whole here-documents."""
    lines = iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines)
        if here := re.search(r"<<'(\w+)'$", line):
            rest = iter(lambda: next(lines), here[1])
            line = "\n".join([line, *rest, here[1]])
        if line and not line.startswith(". "):  # tests run inside the environment already
            yield line


def _run_mmesh(command: list[str]) -> str:
    """Run the command line in this process, which saves a second of starting one."""
    from mmesh.cli import main

    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", command)
        try:
            main()
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{shlex.join(command)} ended with {end.code}")
    return output.getvalue()


@pytest.fixture(scope="session")
def blocks_of() -> Callable[[Path], list[Block]]:
    """Return language and text of every fenced block of a page that has a language."""
    return find_blocks


@pytest.fixture
def run_block(mesh, client, tmp_path, monkeypatch) -> Callable[[str, str], str]:
    """Run a block of `sh` or `python` against the shared mesh; return what it prints."""
    monkeypatch.setenv("MMESH_TARGET_ADDRESS", mesh.address)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return Reader(tmp_path, client).run_block


@pytest.fixture
def follow(run_block) -> Callable[[Path], None]:
    """Run all blocks of a page in order, and compare each `text` with what the one before printed.

    Blocks of other languages are left to other tests.
    """

    def follow(page: Path) -> None:
        printed = ""
        for language, text in find_blocks(page):
            if language == "text":
                assert is_as_shown(text, printed), f"shown:\n{text}\nprinted:\n{printed}"
            elif language in ("sh", "python"):
                printed = run_block(language, text)

    return follow
