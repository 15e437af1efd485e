"""Everything that can be checked without running a test: `make check`.

Each failure prints the one command that mends it.
"""

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tools import generate_docs
from tools.generate_api import generate
from tools.k8s import check as k8s

BIN = pathlib.Path(sys.executable).parent


def run(*command: str) -> bool:
    """Run a program of the environment; print what it says only when it fails."""
    path = f"{BIN}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": path, "HOME": str(pathlib.Path.home())},
    )
    if done.returncode:
        print(done.stdout + done.stderr)
    return done.returncode == 0


def check_api() -> bool:
    """Compare the committed stubs with new ones."""
    with tempfile.TemporaryDirectory() as name:
        fresh = pathlib.Path(name)
        generate(fresh)
        new = {p.relative_to(fresh): p.read_bytes() for p in fresh.rglob("*.py*") if p.is_file()}
    files = [p for p in pathlib.Path("mmesh/api").rglob("*.py*") if "__pycache__" not in p.parts]
    old = {p: p.read_bytes() for p in files}
    stale = sorted(str(path) for path in new.keys() | old.keys() if new.get(path) != old.get(path))
    if stale:
        print("stale:", *stale, sep="\n  ")
    return not stale


def check_k8s() -> bool:
    """Render and check k8s/; where its tools are not installed, say so and go on."""
    if absent := k8s.missing():
        print(f"skip k8s: {absent} missing  -> make setup-k8s")
        return True
    return k8s.check()


def check_containerfile() -> bool:
    """Lint the Containerfile; where hadolint is not installed, say so and go on."""
    if not (BIN / "hadolint").exists():
        print("skip containerfile: hadolint missing  -> make setup-k8s")
        return True
    return run("hadolint", "Containerfile")


CHECKS: list[tuple[str, Callable[[], bool], str]] = [
    ("format", lambda: run("ruff", "format", "--check", "."), "make fmt"),
    ("lint", lambda: run("ruff", "check", "."), "make fmt"),
    ("types", lambda: run("mypy"), "see the lines above"),
    ("layers", lambda: run("lint-imports"), "see [tool.importlinter] in pyproject.toml"),
    ("proto lint", lambda: run("buf", "lint"), "see the lines above"),
    ("proto format", lambda: run("buf", "format", "--diff", "--exit-code", "protos"), "make fmt"),
    (
        "proto breaking",
        lambda: run("buf", "breaking", "--against", "tests/golden/api.txtpb"),
        "make protos-accept, with a line in CHANGELOG.md",
    ),
    ("generated stubs", check_api, "make protos"),
    ("generated docs", generate_docs.check, "make docs"),
    ("containerfile", check_containerfile, "see the lines above"),
    ("k8s", check_k8s, "see the lines above; generated files: make k8s"),
]


def main() -> None:
    """Run all checks and exit with the number that failed."""
    failed = 0
    for name, check, remedy in CHECKS:
        start = time.perf_counter()
        good = check()
        failed += not good
        seconds = time.perf_counter() - start
        print(
            f"{'ok  ' if good else 'FAIL'} {name:16} {seconds:5.1f} s"
            + ("" if good else f"  -> {remedy}")
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
