"""Modules import no circles, and folders stay small enough to be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "mmesh/api"
MOST_MODULES = 16
NO_ROOMS = {"migrations", "lite", "lite_model", "commands", "output"}
"""Packages whose modules are all of one kind."""


def modules() -> dict[str, Path]:
    paths = [p for top in ("mmesh", "services") for p in (ROOT / top).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if GENERATED not in path.parents
    }


def imported(source: str) -> Iterator[str]:
    """Yield what is imported anywhere in a module, in functions and for types, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_imports_itself_by_way_of_others() -> None:
    found = modules()
    packages = {name for name, path in found.items() if path.name == "__init__.py"}
    arrows = {
        name: {other for other in imported(path.read_text()) if other in found} - packages - {name}
        for name, path in found.items()
    }
    assert sum(map(len, arrows.values())) > 500
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_folders_have_few_modules() -> None:
    counts: dict[str, int] = {}
    for path in modules().values():
        if path.name not in ("__init__.py", "__main__.py"):
            folder = path.parent.relative_to(ROOT).as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    larger = {folder for folder, count in counts.items() if count > MOST_MODULES}
    assert not larger


def test_rooms_say_what_lives_there() -> None:
    rooms = [
        *(ROOT / "services").glob("*/*/__init__.py"),
        *(ROOT / "mmesh").glob("*/*/__init__.py"),
    ]
    rooms += [ROOT / "mmesh/wire/__init__.py", ROOT / "mmesh/local/__init__.py"]
    rooms = [room for room in rooms if GENERATED not in room.parents]
    for room in rooms:
        if room.parent.name not in NO_ROOMS:
            said = ast.get_docstring(ast.parse(room.read_text()))
            assert said is not None, room
            assert "What may enter" in " ".join(said.split()), room


def test_no_interpreter_that_is_started_imports_from_the_current_folder() -> None:
    starts = {
        name: re.findall(r'sys\.executable,\s*"(-\w+)', path.read_text())
        for name, path in modules().items()
    }
    assert sum(map(len, starts.values())) > 7
    for name, flags in starts.items():
        assert all(flag[1] in "PI" for flag in flags), name
