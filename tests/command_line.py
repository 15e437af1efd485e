"""The `mmesh` command for tests: in this process, which is quick, and as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmesh.cli import main
from tests.effort import patient

Run = Callable[..., tuple[int, str, str]]
"""`run(*arguments, env=..., folder=..., answer=...)` returns exit code, stdout and stderr."""


def run_here(
    *arguments: object, env: Mapping[str, str], folder: Path, answer: str = ""
) -> tuple[int, str, str]:
    """Run a command as `mmesh` does, up to the exit code, in this process."""
    with (
        CliRunner().isolation(answer, {"COLUMNS": "200", **env}) as (output, errors, _),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["mmesh", *map(str, arguments)])
        patch.chdir(folder)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        return code, output.getvalue().decode(), errors.getvalue().decode()


def run_program(
    *arguments: object, env: Mapping[str, str], folder: Path, answer: str = ""
) -> tuple[int, str, str]:
    """Run a command as people and scripts do."""
    done = subprocess.run(
        [sys.executable, "-c", "from mmesh.cli import main; main()", *map(str, arguments)],
        input=answer,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **env},
        timeout=patient(60),
        check=False,
        cwd=folder,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="session")
def command_here() -> Run:
    return run_here


@pytest.fixture(scope="session")
def command_as_program() -> Run:
    return run_program
